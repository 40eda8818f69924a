"""One upload stream against a plain file and against Arrow Flight, in turn.

fedstream: a client's own code sends a model to a `fedserver run`, plaintext as Flight is: crc of every chunk, sha256 of
every tensor, resumable, and durable before the answer, which also says whether the update is in the round. Its end is
what follows the last committed byte; processor time is of server and sender, until the answer. The file: written in
blocks of 1 MiB, and synced. Flight: DoPut in batches of 1 MiB into a file that is synced before the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import shift
from benchmarks.environments import CannotInstall, environment
from benchmarks.floor import ROOT
from benchmarks.options import Options
from benchmarks.plain_file import write_and_sync
from benchmarks.processes import cpu_seconds
from benchmarks.rows import MIB
from benchmarks.tables import Line, Table
from fedclient.calls import Patience
from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.requests import CHUNK_BYTES, Parcel
from fedclient.upload import Terms, Upload
from fedserver.server import Listening
from fedstream import limits
from fedstream.files import RealFileSystem, write_durably
from fedstream.manifest import Manifest, manifest_of
from fedstream.weights_file import WeightsFile, file_parts
from tests.support.processes import stage
from tests.support.serving import BareSite

SIZE_MIB = 512
_TIMEOUT_SECONDS = 120.0
_FLIGHT = ROOT / "benchmarks" / "flight_ends.py"


@dataclass(frozen=True, slots=True)
class Sent:
    """One upload: from its beginning to the answer, of that from the last committed byte on, and what it used."""

    seconds: float
    end_seconds: float
    server_cpu_seconds: float
    sender_cpu_seconds: float


def run(options: Options) -> Table:
    """Measure all three."""
    title = f"upload: seconds for one stream of {SIZE_MIB} MiB, durable before the answer"
    with tempfile.TemporaryDirectory(prefix="upload-", dir=options.folder) as folder:
        place = Path(folder)
        manifest, uploads = _make_update(place / "update.safetensors"), list[Sent]()
        measured = {
            "fedstream": lambda: _fedstream(place, manifest, uploads),
            "file, written and synced": lambda: _plain_file(place),
            **_flight(place, options),
        }
        seconds = _in_turn(measured, options)
    file = statistics.median(seconds["file, written and synced"])
    lines = [_line(name, each, file) for name, each in seconds.items()]
    return Table(title, [*lines, *_details(uploads)])


def _details(uploads: list[Sent]) -> list[Line]:
    details = {
        "fedstream's end": [one.end_seconds for one in uploads],
        "fedstream's server, processor": [one.server_cpu_seconds for one in uploads],
        "fedstream's sender, processor": [one.sender_cpu_seconds for one in uploads],
    }
    return [Line(name, {"s": statistics.median(each)}, {"seconds": each}) for name, each in details.items()]


def _in_turn(measured: Mapping[str, Callable[[], float]], options: Options) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for turn in range(options.repeats):
        for name, measure in measured.items():
            seconds[name].append(measure())
            options.say(f"{name}, {turn + 1}: {seconds[name][-1]:.2f} s")
    return seconds


def _line(name: str, seconds: list[float], file: float) -> Line:
    median = statistics.median(seconds)
    figures = {"s": median, "GB/s": SIZE_MIB * MIB / median / 1e9, "times the file": median / file}
    return Line(name, figures, {"seconds": seconds})


def _make_update(path: Path) -> Manifest:
    task = shift.Shift({"mib": str(SIZE_MIB)})
    weights = task.initial_weights(1, None)
    manifest = manifest_of(task.schema(), weights)
    write_durably(RealFileSystem(), path, file_parts(manifest, weights))
    return manifest


def _fedstream(place: Path, manifest: Manifest, uploads: list[Sent]) -> float:
    with tempfile.TemporaryDirectory(prefix="server-", dir=place) as folder, stage(Path(folder)) as made:
        options = ["--plaintext", "--rounds", "1", "--min-clients", "1"]
        server = made.server(*options, task=shift.REFERENCE, python_path=ROOT, mib=SIZE_MIB)
        server.until("the model to be made", lambda look: look.state.HasField("global_model") or None)
        path, pid = place / "update.safetensors", server.process.pid
        sent = asyncio.run(_send(server.listening, manifest, path, lambda: cpu_seconds([pid])))
    uploads.append(sent)
    return sent.seconds


async def _send(listening: Listening, manifest: Manifest, path: Path, server_cpu_seconds: Callable[[], float]) -> Sent:
    config = ClientConfig(server=listening.address, plaintext=True, name="sender", data=Path())
    connection = Connection(config)
    await connection.open()
    task = shift.Shift({"mib": str(SIZE_MIB)})
    async with BareSite.dial(listening) as site:
        await site.hello(config.name, task.schema(), task.meaning())
        offer = await site.agree()
        file = WeightsFile(path)
        parcel = Parcel(offer.upload_id, manifest, {name: file.span(name) for name in file.names}, 10, {}, 1, 0.0)
        terms = Terms(CHUNK_BYTES, limits.WINDOW_BYTES)
        committed: list[float] = []

        def on_bytes(done: int, total: int) -> None:
            if done == total:
                committed.append(time.perf_counter())

        upload = Upload(connection, parcel, terms, Patience(), on_bytes)
        server_cpu, sender_cpu, began = server_cpu_seconds(), time.process_time(), time.perf_counter()
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            delivery = await upload.run()
        ended = time.perf_counter()
        used = server_cpu_seconds() - server_cpu, time.process_time() - sender_cpu
    await connection.close()
    assert not delivery.quarantined, delivery.quarantined
    return Sent(ended - began, ended - committed[0], *used)


def _plain_file(place: Path) -> float:
    data, path = memoryview(os.urandom(SIZE_MIB * MIB)), place / "plain"
    began = time.perf_counter()
    write_and_sync(path, data)
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def _flight(place: Path, options: Options) -> dict[str, Callable[[], float]]:
    """Nothing, and a word about it, where pyarrow cannot be installed."""
    try:
        python = environment("flight", "pyarrow")
    except CannotInstall as error:
        options.say(f"left out: Arrow Flight ({error})")
        return {}
    return {"Arrow Flight DoPut": lambda: _put(python, place / "flight")}


def _put(python: Path, path: Path) -> float:
    serve = [str(python), str(_FLIGHT), "serve", str(path)]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            put = [str(python), str(_FLIGHT), "put", server.stdout.readline().strip(), str(SIZE_MIB)]
            done = subprocess.run(put, check=True, stdout=subprocess.PIPE, text=True, timeout=_TIMEOUT_SECONDS)
        finally:
            server.kill()
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return float(done.stdout)
