"""Getting a model: its manifest, the tensors that are not here yet, put together and verified.

Bytes go straight to where they stay (`fedclient.partial`), and no cut or restart asks for one twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Collection
from typing import Any

import structlog

from fedclient import requests
from fedclient.calls import LONG_CALL_SECONDS, Patience, Stalled, moving, translated, until_done
from fedclient.connection import Connection
from fedclient.models import DamagedTensor, LocalModel, ModelStore
from fedclient.partial import PartialModel
from fedstream import limits, wire
from fedstream.body import Chunk
from fedstream.errors import FedstreamError, InvalidManifest, ProtocolError, TransportError, WrongOffset
from fedstream.files import FileSystem
from fedstream.manifest import Digest, Manifest, TensorEntry, check_manifest
from fedstream.schema import ModelSchema
from fedstream.v1 import transfer_pb2

log = structlog.get_logger()

OnBytes = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_MAX_REPAIRS = 3


class ForeignModel(FedstreamError):
    """The server names a model that is not of the schema that was agreed on. To ask again would change nothing."""


class Downloader:
    """Downloads models into a store.

    Args:
        connection: to the server.
        store: where models go, and where tensors that did not change come from.
        files: the file system.
        patience: how to come back after a cut.
    """

    def __init__(self, connection: Connection, store: ModelStore, files: FileSystem, patience: Patience) -> None:
        self._connection = connection
        self._store = store
        self._files = files
        self._patience = patience
        # Guards the partial file: who asks for a model that is on its way already waits for it instead of asking twice.
        self._one_at_a_time = asyncio.Lock()
        # Nothing is dropped from the store while a model is looked for or copied from.
        self._at_the_store = asyncio.Lock()
        self._ahead: tuple[Digest, asyncio.Task[LocalModel]] | None = None
        self.moved_at = -math.inf
        """When a chunk came last, by the steady clock of this process."""

    async def fetch(self, digest: Digest, schema: ModelSchema, max_chunk_bytes: int, on_bytes: OnBytes) -> LocalModel:
        """The model of that digest, from disk or from the server.

        Raises:
            UnknownModel: the server does not publish it (any more).
            ForeignModel: it is of another schema than the one that was agreed on.
            DamagedTensor: what arrives does not match its digests, several times over.
        """
        self._give_up_ahead(but=digest)
        async with self._one_at_a_time:
            return await self._fetch(digest, schema, max_chunk_bytes, on_bytes)

    async def fetch_ahead(self, digest: Digest, schema: ModelSchema, max_chunk_bytes: int) -> None:
        """Fetch a model that nobody waits for yet. It is given up as soon as another one is wanted.

        So a line on which a model takes longer than a round has no models to carry but the newest, and the one that is
        worked on. Raises what `fetch` raises.
        """
        self._give_up_ahead(but=digest)
        fetching = asyncio.create_task(self.fetch(digest, schema, max_chunk_bytes, lambda _done, _total: None))
        self._ahead = digest, fetching
        try:
            await asyncio.wait({fetching})
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
        if not fetching.cancelled():
            fetching.result()

    def _give_up_ahead(self, but: Digest) -> None:
        if self._ahead is not None and self._ahead[0] != but:
            self._ahead[1].cancel()

    async def keep_only(self, wanted: Callable[[], Collection[Digest]]) -> None:
        """Drop all other models from the store. What is wanted is asked once nobody is about to take one."""
        async with self._at_the_store:
            await asyncio.to_thread(self._store.keep_only, wanted())

    async def _fetch(self, digest: Digest, schema: ModelSchema, max_chunk_bytes: int, on_bytes: OnBytes) -> LocalModel:
        for repairs_left in reversed(range(_MAX_REPAIRS)):
            async with self._at_the_store:
                local = await asyncio.to_thread(self._store.get, digest)  # it looks whether the file is there
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
        """Trust nothing that was kept: drop what has arrived, and hash every local model again."""
        self._store.drop_partials()
        self._store.load()

    async def _manifest(self, digest: Digest, schema: ModelSchema) -> Manifest:
        async def once() -> Manifest:
            with translated():
                entries = await self._read_manifest(digest)
            if Manifest(tuple(entries)).model_digest() != digest:
                raise TransportError("the manifest that arrived is not the one that was asked for")
            try:
                return check_manifest(entries, schema)
            except ProtocolError as error:  # of the domain, but found here, not said by the server
                raise ForeignModel(f"the server's model is not of the federation's schema: {error}") from error

        return await until_done(once, lambda: 0, self._patience, "asking for the model's manifest")

    async def _read_manifest(self, digest: Digest) -> list[TensorEntry]:
        request = requests.get_manifest(digest)
        entries: list[TensorEntry] = []
        async for message in self._connection.transfer.GetManifest(request, timeout=LONG_CALL_SECONDS):
            entries += _checked_part(message.part)
            if len(entries) > limits.MAX_TENSORS:
                raise TransportError(f"the server's manifest has over {limits.MAX_TENSORS} tensors")
        return entries

    async def _complete(self, manifest: Manifest, max_chunk_bytes: int, on_bytes: OnBytes) -> LocalModel:
        digest = manifest.model_digest()
        # Of models that were begun, only the newest is worth its place on the disk.
        await asyncio.to_thread(self._store.drop_partials, digest)
        async with contextlib.AsyncExitStack() as opened:
            async with self._at_the_store:
                known = await asyncio.to_thread(self._store.tensors)
                partial = PartialModel(manifest, self._store.partial_path(digest), self._files, known)
                opened.push_async_callback(asyncio.to_thread, partial.close)  # waits for a thread left in a call
                await asyncio.to_thread(partial.open)
            facts = {"bytes": partial.size_bytes, "kept": partial.kept}
            log.info("downloading a model", **facts, tensors=len(partial.lacking), of=len(manifest))
            if partial.kept < partial.size_bytes:
                await self._receive(digest, partial, max_chunk_bytes, on_bytes)
        return await asyncio.to_thread(self._store.adopt, manifest)

    async def _receive(self, digest: Digest, partial: PartialModel, max_chunk_bytes: int, on_bytes: OnBytes) -> None:
        async def once() -> None:
            size, before = self._connection.chunk_size, partial.kept
            chunk_bytes = min(max_chunk_bytes, size.most_bytes)
            request = requests.read_chunks(digest, partial.lacking, partial.kept, chunk_bytes)
            on_bytes(partial.kept, partial.size_bytes)
            try:
                with translated():
                    await self._read_chunks(request, partial, on_bytes)
            except Stalled:
                size.note_stall(chunk_bytes)
                raise
            except TransportError:
                if partial.kept == before and not self._connection.is_out_of_reach:
                    size.note_cut(chunk_bytes)
                raise
            except WrongOffset as error:
                raise DamagedTensor(f"more of the model is here than the server has: {error}") from error
            if partial.kept < partial.size_bytes:
                raise TransportError(f"the body ended after {partial.kept} of {partial.size_bytes} bytes")

        await until_done(once, lambda: partial.kept, self._patience, "downloading a model")

    async def _read_chunks(
        self, request: transfer_pb2.ReadChunksRequest, partial: PartialModel, on_bytes: OnBytes
    ) -> None:
        call: Any = self._connection.transfer.ReadChunks(request)
        before = partial.kept
        try:
            while partial.kept < partial.size_bytes:
                async with moving():
                    message = await call.read()
                if not isinstance(message, Chunk):
                    return
                self.moved_at = time.monotonic()
                await asyncio.to_thread(partial.take, message)
                self._connection.chunk_size.note_run(partial.kept - before)
                on_bytes(partial.kept, partial.size_bytes)
        finally:
            call.cancel()


def _checked_part(part: transfer_pb2.ManifestPart) -> list[TensorEntry]:
    try:
        return wire.read_part(part)
    except InvalidManifest as error:
        raise TransportError(f"the server's manifest is not sound: {error}") from error
