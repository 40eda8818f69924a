"""What Prometheus reads of a server, over real HTTP. 12 s."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedserver import metrics, metrics_port
from fedserver.exit_codes import ExitCode
from fedserver.server import Listening
from fedserver.store.history import History
from fedstream.manifest import manifest_of
from tests.support.processes import Stage, until
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


def read(listening: Listening) -> str:
    with urllib.request.urlopen(f"http://{listening.metrics_address}/metrics", timeout=30) as answer:
        return str(answer.read(), "utf-8")


async def scrape(listening: Listening) -> str:
    return await asyncio.to_thread(read, listening)


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


async def call(listening: Listening) -> socket.socket:
    assert listening.metrics_address is not None
    host, _, port = listening.metrics_address.rpartition(":")
    return await asyncio.to_thread(socket.create_connection, (host, int(port)), 30)


def is_answered(listening: Listening) -> bool:
    try:
        return "fedstream_info" in read(listening)
    except OSError:  # hung up on
        return False


async def test_callers_that_say_nothing_take_no_more_than_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_port._Caller, "timeout", 600.0)  # none of them is given up meanwhile
    monkeypatch.setattr(metrics_port, "_AT_ONCE", 16)
    async with serving(tmp_path, **SETTINGS) as (_, listening):
        before = threading.active_count()
        with contextlib.ExitStack() as silent:
            for _ in range(3 * 16):
                silent.enter_context(await call(listening))
            assert not await asyncio.to_thread(is_answered, listening)
            assert 16 <= threading.active_count() - before <= 16 + 4  # to_thread has some too


async def test_callers_that_say_nothing_are_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_port._Caller, "timeout", 1.0)
    monkeypatch.setattr(metrics_port, "_AT_ONCE", 4)
    async with serving(tmp_path, **SETTINGS) as (_, listening):
        with contextlib.ExitStack() as silent:
            for _ in range(4):
                silent.enter_context(await call(listening))
            await asyncio.to_thread(until, "an answer", lambda: is_answered(listening))


async def test_callers_that_say_a_byte_now_and_then_are_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_port, "_WHOLE_SECONDS", 1.0)
    monkeypatch.setattr(metrics_port, "_AT_ONCE", 4)
    async with serving(tmp_path, **SETTINGS) as (_, listening):
        with contextlib.ExitStack() as slow:
            callers = [slow.enter_context(await call(listening)) for _ in range(4)]

            async def drip() -> None:
                while True:
                    for caller in callers:
                        with contextlib.suppress(OSError):
                            caller.send(b"G")
                    await asyncio.sleep(0.2)

            dripping = asyncio.create_task(drip())
            await asyncio.to_thread(until, "an answer", lambda: is_answered(listening), 30.0)
            dripping.cancel()


async def test_caller_that_hangs_up_leaves_nothing_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path, **SETTINGS) as (_, listening):
        caller = await call(listening)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # as a scan of ports does
        caller.close()
        assert "fedstream_info" in await scrape(listening)
    assert "Traceback" not in capfd.readouterr().err


async def test_busy_server_is_told_as_such_and_costs_no_later_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "_PATIENCE_SECONDS", 0.2)
    async with serving(tmp_path, **SETTINGS) as (server, listening):
        await asyncio.wait_for(server.federation.ready.wait(), 30)
        asking = asyncio.create_task(scrape(listening))
        await asyncio.sleep(0)  # the thread asks, and
        time.sleep(1.0)  # noqa: ASYNC251 - the loop that could answer is held up
        with pytest.raises(urllib.error.HTTPError, match="503: Service Unavailable"):
            await asking
        assert "fedstream_info" in await scrape(listening)
    assert "Traceback" not in capfd.readouterr().err


async def test_count_of_what_is_over_goes_on_where_a_question_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_RECORDS_AT_ONCE", 1)
    starts: list[int] = []
    real = History.__getitem__

    def noted(history: History, place: Any) -> Any:
        if isinstance(place, slice) and place.stop is not None:
            starts.append(place.start)
        return real(history, place)

    async with serving(tmp_path, **SETTINGS) as (server, listening), BareSite.dial(listening) as site:
        schema = Shapes({}).schema()
        await site.join("alpha", server)
        for _ in range(2):
            await site.upload((await site.agree()).upload_id, schema, random_weights(schema, 1))
            assert (await site.hear()).round_outcome.succeeded
        await site.agree()
        monkeypatch.setattr(History, "__getitem__", noted)
        collector = metrics.FederationCollector(server.federation, asyncio.get_running_loop())
        given_up = asyncio.create_task(collector.look())
        await asyncio.to_thread(until, "the first to be counted", lambda: len(starts) > 1)
        given_up.cancel()
        seen, asked = await collector.look(), list(starts)  # before the report asks for all
    assert seen.totals.rounds == seen.totals.succeeded == 2
    assert asked[:1] == [0]
    assert 0 not in asked[1:]


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
