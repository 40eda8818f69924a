"""What Prometheus reads of a server, over real HTTP. 5 s."""

from __future__ import annotations

import asyncio
import re
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedserver.exit_codes import ExitCode
from fedserver.server import Listening
from fedstream.manifest import manifest_of
from tests.support.processes import Stage
from tests.support.serving import BareSite, body_of, serving
from tests.support.tasks import Shapes, random_weights

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operating.md"
SETTINGS = {
    "task": "tests.support.tasks:Shapes",
    "min_clients": 1,
    "rounds": 3,
    "metrics_listen": "127.0.0.1:0",
    "plaintext": True,
}


async def scrape(listening: Listening) -> str:
    def read() -> str:
        with urllib.request.urlopen(f"http://{listening.metrics_address}/metrics", timeout=30) as answer:
            return str(answer.read(), "utf-8")

    return await asyncio.to_thread(read)


async def numbers(listening: Listening) -> dict[str, float]:
    """By name, with the values of labels behind it."""
    return {
        " ".join([sample.name.removeprefix("fedstream_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(await scrape(listening))
        for sample in family.samples
    }


async def test_numbers_of_a_federation_are_those_of_what_happened_also_after_a_restart(tmp_path: Path) -> None:
    schema = Shapes({}).schema()
    weights = random_weights(schema, 1)
    manifest = manifest_of(schema, weights)
    async with serving(tmp_path, **SETTINGS, name="brains") as (server, listening), BareSite.dial(listening) as site:
        before = await numbers(listening)
        for _ in range(200):  # it is ready a moment before it says what it waits for
            if before["state waiting"]:
                break
            await asyncio.sleep(0.02)
            before = await numbers(listening)
        await site.join("alpha", server)
        upload_id = (await site.agree()).upload_id
        missing = (await site.put_manifest(upload_id, manifest)).missing_tensors
        during = await numbers(listening)
        await site.upload(upload_id, schema, weights)
        assert (await site.hear()).round_outcome.succeeded
        await site.hear()  # the next offer
        after = await numbers(listening)
    async with serving(tmp_path, **SETTINGS) as (_, listening):
        again = await numbers(listening)

    size = len(body_of(manifest, weights, missing))
    assert parts(before, f"info brains {SETTINGS['task']}", "state waiting", "state running") == [1, 1, 0]
    assert parts(before, "clients connected", "round", "rounds_planned") == [0, 0, 3]
    working = ("state running", "clients connected", "round", "rounds_total succeeded", "offers_total completed")
    assert parts(during, *working) == [1, 1, 1, 0, 0]
    over = ("rounds_total succeeded", "rounds_total failed", "offers_total completed", "offers_total cancelled")
    assert parts(after, *over, "received_bytes_total", "round") == [1, 0, 1, 0, size, 2]
    assert 0 < after["last_round_seconds"] < 60
    assert after["process_resident_memory_bytes"] > 10_000_000
    assert after["disk_free_bytes"] > 0
    assert parts(again, *over, "received_bytes_total") == [1, 1, 1, 1, size]  # the second round was stopped
    assert parts(again, "clients connected", "clients disconnected") == [0, 1]


def parts(numbers: dict[str, float], *names: str) -> list[float]:
    return [numbers[name] for name in names]


async def test_document_has_every_number(tmp_path: Path) -> None:
    settings = {**SETTINGS, "task": "linear", "holdout": "phantom"}
    async with serving(tmp_path, **settings) as (server, listening), BareSite.dial(listening) as site:
        await site.join("alpha", server)
        schema = server.federation.schema
        await site.upload((await site.agree()).upload_id, schema, random_weights(schema, 1))
        await site.hear()
        text = await scrape(listening)
    helped = re.findall(r"^# HELP (fedstream_\w+) (.*)$", text, flags=re.MULTILINE)

    table = DOCUMENT.read_text("utf-8").split("| number | what it is |\n")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(fedstream_\w+)[^`]*` \| (.*) \|$", table, flags=re.MULTILINE) == helped


def test_port_for_numbers_that_is_taken_is_said_at_the_start(scene: Stage) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = scene.command(
            "fedserver",
            "run",
            "--plaintext",
            "--task",
            "linear",
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            address,
        )
    assert said.status == ExitCode.BAD_CONFIGURATION
    assert f"cannot listen on {address} for metrics: Address already in use" in said.err
