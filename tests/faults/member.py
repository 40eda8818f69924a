"""A member of a federation that negotiates by itself and leaves the uploading to fedclient's uploader."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.requests import Parcel
from fedserver.server import Listening
from fedserver.store.folder import read_contact
from fedstream.chunk_messages import decode_write_chunks
from fedstream.files import RealFileSystem, write_durably
from fedstream.manifest import Manifest, manifest_of
from fedstream.schema import ModelSchema
from fedstream.v1 import negotiation_pb2
from fedstream.weights_file import FileSpan, WeightsFile, file_parts
from fedtask.linear import Linear
from tests.faults.federation import fingerprint_of
from tests.support.serving import BareSite

BeforeChunk = Callable[[int, int], Awaitable[None]]
"""Called with offset and length of each chunk before it is handed to gRPC."""


@asynccontextmanager
async def server_process(
    folder: Path, settings: Mapping[str, Any], task: Mapping[str, str], on_host: Sequence[str] = ()
) -> AsyncIterator[Listening]:
    """A `fedserver run` with these settings of its TOML file, ended with the block.

    Args:
        folder: where its settings, state, output and log lie.
        settings: over what `server_settings` gives.
        task: settings of the task.
        on_host: words before its command with which it runs elsewhere than here.
    """
    config = server_settings(folder, settings, task)
    command = (sys.executable, "-c", "from fedserver.cli import main; main()", "run", "--config", str(config))
    with (folder / "server.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(*on_host, *command, "--log-json", "--log-level", "debug"),
            stderr=log,
            stdin=asyncio.subprocess.DEVNULL,
        )
    try:
        fingerprint = await asyncio.wait_for(fingerprint_of(folder), 60)
        contact = read_contact(folder / "state")
        yield Listening(contact["address"], fingerprint, contact["admin"])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def server_settings(folder: Path, settings: Mapping[str, Any], task: Mapping[str, str]) -> Path:
    """The TOML file of a server whose state and output lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"task": "linear", "listen": "127.0.0.1:0", "state": str(folder / "state"), "out": str(folder / "out")}
    given["open_enrolment"] = True  # joining is tested elsewhere
    lines = [f"{key} = {json.dumps(value)}" for key, value in (given | dict(settings)).items()]
    lines += ["[task_settings]", *(f"{key} = {json.dumps(value)}" for key, value in task.items())]
    path = folder / "server.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass(slots=True)
class CountingTransfer:
    """The transfer stub, with what is written to streams of chunks counted: all of it, also what never arrived."""

    stub: Any
    before_chunk: BeforeChunk
    sent_bytes: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stub, name)

    def WriteChunks(self) -> Any:  # noqa: N802 - the name of the RPC
        """A stream that counts."""
        return _CountingCall(self.stub.WriteChunks(), self)


class _CountingCall:
    def __init__(self, call: Any, owner: CountingTransfer) -> None:
        self._call, self._owner = call, owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def write(self, message: bytes) -> None:
        chunk = decode_write_chunks(message).chunk
        size = len(chunk.data)
        await self._owner.before_chunk(chunk.write_offset, size)
        self._owner.sent_bytes += size
        await self._call.write(message)


@dataclass(frozen=True, slots=True)
class Trained:
    """Trained weights on disk, as a fine-tune leaves them."""

    manifest: Manifest
    spans: Mapping[str, FileSpan]

    @classmethod
    def make(cls, path: Path, schema: ModelSchema, seed: int) -> Trained:
        """Random weights, every tensor of them new."""
        rng = np.random.default_rng(seed)
        weights = {spec.name: rng.standard_normal(spec.shape, np.float32) for spec in schema}
        manifest = manifest_of(schema, weights)
        write_durably(RealFileSystem(), path, file_parts(manifest, weights))
        file = WeightsFile(path)
        return cls(manifest, {name: file.span(name) for name in file.names})

    def parcel(self, upload_id: str) -> Parcel:
        """What the uploader takes."""
        return Parcel(upload_id, self.manifest, self.spans, 10, {"loss": 0.5}, epochs=1, training_seconds=0.1)


@dataclass(slots=True)
class Member:
    """One client at the level of messages; it is offered one round after the other."""

    site: BareSite
    schema: ModelSchema
    outcomes: list[negotiation_pb2.RoundOutcome] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def join(cls, listening: Listening, name: str, task: Mapping[str, str]) -> AsyncIterator[Member]:
        """Say hello and be welcome."""
        linear = Linear(task)
        async with BareSite.dial(listening) as site:
            answer = await site.hello(name, linear.schema(), linear.meaning())
            if answer.WhichOneof("kind") != "welcome":
                raise RuntimeError(f"the server did not welcome {name}: {answer}")
            yield cls(site, linear.schema())

    async def agree(self) -> negotiation_pb2.Offer:
        """Wait for the next offer and take it."""
        offer = None
        while True:
            message = await self.site.hear()
            match message.WhichOneof("kind"):
                case "offer":
                    offer = message.offer
                    await self.site.say(accept=negotiation_pb2.Acceptance(offer_id=offer.offer_id))
                case "confirm" if offer is not None:
                    return offer
                case "round_outcome":
                    self.outcomes.append(message.round_outcome)


@asynccontextmanager
async def connected(folder: Path, address: str, fingerprint: str | None) -> AsyncIterator[Connection]:
    """A client's connection, which may lead through a proxy."""
    config = ClientConfig.model_validate(
        {"server": address, "fingerprint": fingerprint, "name": "site-0", "data": "phantom", "state_dir": folder}
    )
    connection = Connection(config)
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()
