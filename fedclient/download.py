"""Getting a model: its manifest, the tensors that are not here yet, and all of it put together and verified.

What has arrived of a body lies in a file of its own whose length is the number of bytes kept, so that neither a cut
nor a restart of the client asks for a byte twice. It is not synced: after a power cut it may hold anything, and the
digests, which are checked before the model counts as here, say so.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from fedclient.calls import LONG_CALL_SECONDS, Patience, moving, translated, until_done
from fedclient.connection import Connection
from fedclient.models import DamagedTensor, LocalModel, ModelStore
from fedstream import limits, wire
from fedstream.body import admit_chunk, body_size
from fedstream.errors import InvalidManifest, ProtocolError, TransportError, WrongOffset
from fedstream.files import FileSystem
from fedstream.manifest import Digest, Manifest, TensorEntry, check_manifest
from fedstream.schema import ModelSchema
from fedstream.v1 import transfer_pb2
from fedstream.weights_file import FileSpan

log = structlog.get_logger()

OnBytes = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_MAX_REPAIRS = 3


class Downloader:
    """Downloads models into a store.

    Args:
        connection: to the server.
        store: where models go, and where tensors that did not change come from.
        folder: for bodies that have not arrived whole.
        files: the file system.
        patience: how to come back after a cut.
    """

    def __init__(
        self, connection: Connection, store: ModelStore, folder: Path, files: FileSystem, patience: Patience
    ) -> None:
        self._connection = connection
        self._store = store
        self._folder = folder
        self._files = files
        self._patience = patience
        # Guards the folder: who asks for a model that is on its way already waits for it instead of asking twice.
        self._one_at_a_time = asyncio.Lock()

    async def fetch(self, digest: Digest, schema: ModelSchema, max_chunk_bytes: int, on_bytes: OnBytes) -> LocalModel:
        """The model of that digest, from disk or from the server.

        Raises:
            UnknownModel: the server does not publish it (any more).
            DamagedTensor: what arrives does not match its digests, several times over.
        """
        async with self._one_at_a_time:
            return await self._fetch(digest, schema, max_chunk_bytes, on_bytes)

    async def _fetch(self, digest: Digest, schema: ModelSchema, max_chunk_bytes: int, on_bytes: OnBytes) -> LocalModel:
        for repairs_left in reversed(range(_MAX_REPAIRS)):
            local = self._store.get(digest)
            if local is not None:
                return local
            manifest = await self._manifest(digest, schema)
            try:
                return await self._complete(manifest, max_chunk_bytes, on_bytes)
            except DamagedTensor as error:
                if not repairs_left:
                    raise
                log.warning("downloading again", because=str(error))
                await asyncio.to_thread(self._start_afresh)
        raise AssertionError("the last repair either returns or raises")

    def _start_afresh(self) -> None:
        """Trust nothing that was kept: drop partial bodies, and hash every local model again."""
        for path in self._folder.glob("*.body"):
            self._files.remove(path)
        self._store.load()

    async def _manifest(self, digest: Digest, schema: ModelSchema) -> Manifest:
        async def once() -> Manifest:
            with translated():
                entries = await self._read_manifest(digest)
            try:
                manifest = check_manifest(entries, schema)
            except ProtocolError as error:  # of the domain, but found here, not said by the server
                raise TransportError(f"the server's manifest is not of this model: {error}") from error
            if manifest.model_digest() != digest:
                raise TransportError("the manifest that arrived is not the one that was asked for")
            return manifest

        return await until_done(once, lambda: 0, self._patience, "asking for the model's manifest")

    async def _read_manifest(self, digest: Digest) -> list[TensorEntry]:
        request = transfer_pb2.GetManifestRequest(model_sha256=digest.sha256)
        entries: list[TensorEntry] = []
        async for message in self._connection.transfer.GetManifest(request, timeout=LONG_CALL_SECONDS):
            entries += _checked_part(message.part)
            if len(entries) > limits.MAX_TENSORS:
                raise TransportError(f"the server's manifest has over {limits.MAX_TENSORS} tensors")
        return entries

    async def _complete(self, manifest: Manifest, max_chunk_bytes: int, on_bytes: OnBytes) -> LocalModel:
        known = await asyncio.to_thread(self._store.tensors)
        lacking = [index for index, entry in enumerate(manifest) if entry.digest not in known and entry.size_bytes]
        body = PartialBody.open(self._folder, self._files, manifest, lacking)
        log.info("downloading a model", bytes=body.size_bytes, kept=body.kept, tensors=len(lacking), of=len(manifest))
        try:
            if body.kept < body.size_bytes:
                await self._receive(manifest, lacking, body, max_chunk_bytes, on_bytes)
            spans = _spans(manifest, lacking, body.path, known)
            model = await asyncio.to_thread(self._store.add, manifest, spans)
        finally:
            body.close()
        self._files.remove(body.path)
        return model

    async def _receive(
        self, manifest: Manifest, lacking: Sequence[int], body: PartialBody, max_chunk_bytes: int, on_bytes: OnBytes
    ) -> None:
        async def once() -> None:
            request = transfer_pb2.ReadChunksRequest(
                model_sha256=manifest.model_digest().sha256,
                tensors=lacking,
                read_offset=body.kept,
                max_chunk_bytes=max_chunk_bytes,
            )
            try:
                with translated():
                    await self._read_chunks(request, body, on_bytes)
            except WrongOffset as error:
                body.kept = 0
                raise TransportError(str(error)) from error
            if body.kept < body.size_bytes:
                raise TransportError(f"the body ended after {body.kept} of {body.size_bytes} bytes")

        await until_done(once, lambda: body.kept, self._patience, "downloading a model")

    async def _read_chunks(self, request: transfer_pb2.ReadChunksRequest, body: PartialBody, on_bytes: OnBytes) -> None:
        call: Any = self._connection.transfer.ReadChunks(request)
        try:
            while body.kept < body.size_bytes:
                async with moving():
                    message = await call.read()
                if not isinstance(message, transfer_pb2.ReadChunksResponse):
                    return
                await asyncio.to_thread(body.take, message.chunk)
                on_bytes(body.kept, body.size_bytes)
        finally:
            call.cancel()


@dataclass(slots=True)
class PartialBody:
    """A body as far as it has arrived: `kept` bytes of `size_bytes`, in a file."""

    path: Path
    size_bytes: int
    kept: int
    files: FileSystem
    descriptor: int

    @classmethod
    def open(cls, folder: Path, files: FileSystem, manifest: Manifest, indexes: Sequence[int]) -> PartialBody:
        """The body of just these tensors of just this model, with what an earlier try has left."""
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(manifest.model_digest().sha256 + repr(list(indexes)).encode()).hexdigest()
        path, size_bytes = folder / f"{name}.body", body_size(manifest, indexes)
        descriptor = files.open(path)
        return cls(path, size_bytes, min(path.stat().st_size, size_bytes), files, descriptor)

    def take(self, message: transfer_pb2.Chunk) -> None:
        """Keep what is new in a chunk.

        Raises:
            TransportError: it is not the chunk that was due, or damaged.
        """
        try:
            new = admit_chunk(wire.read_chunk(message), self.kept, self.size_bytes, limits.MAX_CHUNK_BYTES)
        except ProtocolError as error:
            raise TransportError(f"a chunk that arrived is not sound: {error}") from error
        self.files.write_at(self.descriptor, self.kept, new)
        self.kept += len(new)

    def close(self) -> None:
        """Give the file back; what is in it stays."""
        self.files.close(self.descriptor)


def _checked_part(part: transfer_pb2.ManifestPart) -> list[TensorEntry]:
    try:
        return wire.read_part(part)
    except InvalidManifest as error:
        raise TransportError(f"the server's manifest is not sound: {error}") from error


def _spans(manifest: Manifest, lacking: Sequence[int], body: Path, known: dict[Digest, FileSpan]) -> list[FileSpan]:
    starts = itertools.accumulate((manifest.entries[index].size_bytes for index in lacking), initial=0)
    arrived = dict(zip(lacking, starts, strict=False))
    return [
        FileSpan(body, arrived[index], entry.size_bytes) if index in arrived else known.get(entry.digest, _NOTHING)
        for index, entry in enumerate(manifest)
    ]


_NOTHING = FileSpan(Path(), 0, 0)
"""Where a tensor without any element stands."""
