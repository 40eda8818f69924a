"""The client in JavaScript with updates in other encodings than raw: admitted, smaller, and resumed. Half a minute."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fedserver.store.ledger import Entry, ledger
from fedserver.store.reading import StateReader
from tests.support.features import write_wide_site
from tests.support.node import missing, node_client
from tests.support.processes import RunningServer, Stage, soon
from tests.support.proxy import proxied

_MISSING = missing()

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.numpy_task,
    pytest.mark.timeout(120),
    pytest.mark.skipif(_MISSING != "", reason=_MISSING or "all is there"),
]

TASK = "brain_mri_head"
WIDTH = 5_000
RAW_BYTES = 4 * (WIDTH + 1)
MIB = 1 << 20
SHARES = {"zstd": 1.0, "bfloat16": 0.51, "bfloat16+zstd": 0.51, "int8": 0.26, "int8+zstd": 0.26}
"""Of the raw bytes, the most that an update takes."""


def entries_of(server: RunningServer) -> list[Entry]:
    reader = StateReader(server.state)
    try:
        return [row.entry() for row in ledger(reader.database)]
    finally:
        reader.close()


def settings(width: int) -> dict[str, str]:
    return {"backbone": "none", "features": str(width), "epochs": "1", "patience": "0"}


def kept(folder: Path) -> set[str]:
    """What lies in a client's folder for what must survive a restart."""
    return {path.name for path in (folder / "state").rglob("*") if path.is_file()}


@pytest.mark.parametrize("encoding", SHARES)
def test_update_is_admitted_in_the_encoding_that_the_server_prefers(scene: Stage, encoding: str) -> None:
    options = ["--rounds", "3", "--min-clients", "1", "--update-encoding", encoding]
    server = scene.server(*options, task=TASK, **settings(WIDTH))
    client = node_client(scene, "alpha", server.listening, write_wide_site(scene.folder, WIDTH, settings(WIDTH)))
    assert (client.wait(), server.wait()) == (0, 0), client.text
    assert [member.outcome for entry in entries_of(server) for member in entry.cohort] == ["completed"] * 3
    sizes = [line["bytes"] for line in client.said("sending the update")]
    assert len(sizes) == 3
    assert max(sizes) < SHARES[encoding] * RAW_BYTES
    verified = scene.command("fedserver", "verify", "--state", str(server.state))
    assert (verified.status, "everything agrees" in verified.out) == (0, True)
    assert kept(scene.folder / "alpha") == set()  # the federation is over


def test_encoding_that_the_site_does_not_take_is_not_used(scene: Stage) -> None:
    options = ["--rounds", "1", "--min-clients", "1", "--update-encoding", "int8"]
    server = scene.server(*options, task=TASK, **settings(WIDTH))
    data = write_wide_site(scene.folder, WIDTH, settings(WIDTH))
    client = node_client(scene, "alpha", server.listening, data, "--update-encoding", "zstd")
    assert (client.wait(), server.wait()) == (0, 0), client.text
    assert [line["bytes"] for line in client.said("sending the update")] == [RAW_BYTES]


async def test_client_killed_in_an_encoded_upload_goes_on_in_the_same_bytes(scene: Stage) -> None:
    width = 3 << 19
    data = write_wide_site(scene.folder, width, settings(width))
    options = ["--rounds", "1", "--min-clients", "1", "--update-encoding", "bfloat16"]
    server = await asyncio.to_thread(scene.server, *options, task=TASK, **settings(width))
    async with proxied(server.listening) as (proxy, near):
        proxy.cut_after(5 * MIB // 2)
        first = node_client(scene, "alpha", near, data)
        await soon("the cut", lambda: proxy.cuts == 1)
        first.process.kill()
        await first.ended()
        second = node_client(scene, "alpha", near, data)
        assert (await second.ended(), await server.ended()) == (0, 0), second.text
    assert len(second.said("trained")) == 1  # both processes write to one log
    assert second.said("sending the update")[-1]["committed"] > 0
    assert [member.outcome for entry in entries_of(server) for member in entry.cohort] == ["completed"]
