"""The TransferService: parses, calls the upload desk or the model store, translates errors, serialises."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import grpc
import structlog

from fedserver.bounds import each_in_time, in_time
from fedserver.desk import Committer, Desk, OpenUpload, UploadStatus
from fedserver.federation import Federation
from fedserver.services.callers import CALLER
from fedserver.services.calls import (
    Context,
    begin_answer,
    end_standing_still,
    end_unheard,
    give_way,
    translates_errors,
)
from fedserver.services.downloads import STANDSTILL_SECONDS, Downloads
from fedserver.services.ownership import require_own
from fedserver.services.shared_chunks import ChunkKey, EncodedChunk, SharedChunks
from fedserver.store import UpdateFacts, Upload, UploadState
from fedstream import limits, wire
from fedstream.body import BodyReader, Chunk, admit_chunk
from fedstream.chunk_messages import WrittenChunk, decode_write_chunks
from fedstream.encodings import Encoded, Encoding
from fedstream.errors import InvalidManifest, InvalidRequest, Superseded, WrongOffset
from fedstream.manifest import Manifest, TensorEntry, check_manifest
from fedstream.v1 import transfer_pb2, transfer_pb2_grpc

log = structlog.get_logger()

_STATES = {state: transfer_pb2.UploadState.Value(f"UPLOAD_STATE_{state.name}") for state in UploadState}

ManifestStream = AsyncIterator[transfer_pb2.PutManifestRequest]


class TransferServicer(transfer_pb2_grpc.TransferServiceServicer):
    """Uploads of updates and downloads of models."""

    def __init__(self, federation: Federation, desk: Desk) -> None:
        self.federation = federation
        self._desk = desk
        self._shared = SharedChunks()
        self.downloads = Downloads()
        # By the model's sha256. All clients ask for the same manifest at the same time.
        self._last_manifest: tuple[bytes, list[transfer_pb2.GetManifestResponse]] = b"", []

    @translates_errors
    async def PutManifest(self, requests: ManifestStream, context: Context) -> transfer_pb2.PutManifestResponse:
        """Takes an update's manifest and says which tensors are missing."""
        header, manifest, encoded = await self._read_manifest(requests, context)
        facts = UpdateFacts(
            num_examples=header.num_examples,
            metrics=wire.read_metrics(header.metrics),
            epochs=header.epochs,
            training_seconds=_training_seconds(header),
            encoded=encoded,
            undefined=wire.read_undefined(header.metrics),
        )
        upload = (await self._desk.begin(header.upload_id, manifest, facts)).upload
        return transfer_pb2.PutManifestResponse(
            missing_tensors=upload.missing,
            body_size_bytes=upload.size_bytes,
            committed_size=upload.committed_size,
            window_bytes=self._desk.window_bytes,
        )

    async def _read_manifest(
        self, requests: ManifestStream, context: Context
    ) -> tuple[transfer_pb2.UpdateHeader, Manifest, dict[str, Encoded]]:
        header: transfer_pb2.UpdateHeader | None = None
        entries: list[tuple[TensorEntry, Encoded]] = []
        async for request in each_in_time(requests, self.federation.config.message_timeout_seconds):
            if header is None:
                header = await self._check_header(request)
                continue
            if request.WhichOneof("kind") == "header":
                raise InvalidRequest("the header comes once", field="header")
            entries += wire.read_encoded_part(request.part, self.federation.encodings_taken)
            if len(entries) > min(header.num_tensors, len(self.federation.schema)):
                break  # what is wrong with it shows below, and no more is gathered than the model has
        if header is None:
            await end_unheard(context)
        manifest = self._check_manifest(header, [entry for entry, _ in entries])
        encoded = {entry.name: how for entry, how in entries if how.encoding is not Encoding.RAW}
        return header, manifest, encoded

    def _check_manifest(self, header: transfer_pb2.UpdateHeader, entries: list[TensorEntry]) -> Manifest:
        schema = self.federation.schema
        if len(entries) != header.num_tensors and len(entries) <= len(schema):
            raise InvalidManifest(f"{header.num_tensors} tensors were declared, {len(entries)} came")
        manifest = check_manifest(entries, schema)
        if manifest.model_digest() != wire.read_digest(header.model_digest):
            raise InvalidManifest("model_digest is not the digest of the manifest's canonical description")
        return manifest

    async def _check_header(self, request: transfer_pb2.PutManifestRequest) -> transfer_pb2.UpdateHeader:
        if request.WhichOneof("kind") != "header":
            raise InvalidRequest("the first message must have the header", field="header")
        await require_own(self.federation, self._desk, request.header.upload_id)
        await self._desk.require(request.header.upload_id)  # before anything is read for it
        if request.header.num_tensors > limits.MAX_TENSORS:
            raise InvalidManifest(f"{request.header.num_tensors} tensors; at most {limits.MAX_TENSORS} are allowed")
        return request.header

    @translates_errors
    async def WriteChunks(self, _requests: object, context: Context) -> None:
        """Takes chunks and answers with the committed size as bytes become durable."""
        chunks = _Chunks(context)
        upload_id = await in_time(chunks.whose(), self.federation.config.message_timeout_seconds)
        if upload_id is None:
            return
        await require_own(self.federation, self._desk, upload_id)
        await begin_answer(context)
        opened = await self._desk.at_work(upload_id)  # nothing may come in between: the upload could end meanwhile
        superseded = opened.take_over()
        try:
            message = "a newer stream of this upload took over"
            await give_way(self._write(upload_id, opened, chunks, context), superseded, message)
        except Superseded:
            await self._desk.at_work(upload_id)  # a closed round is the better reason
            raise

    async def _write(self, upload_id: str, opened: OpenUpload, chunks: _Chunks, context: Context) -> None:
        async with opened.writer:
            upload = opened.upload

            async def tell(committed: int) -> None:
                await context.write(transfer_pb2.WriteChunksResponse(committed_size=committed))

            window = self._desk.window_bytes
            committer = Committer(
                lambda: upload.wants_commit(window), lambda: self._desk.commit(upload_id, upload), tell
            )
            await tell(await committer.during(self._receive(upload_id, opened, chunks, committer)))

    async def _receive(self, upload_id: str, opened: OpenUpload, chunks: _Chunks, committer: Committer) -> None:
        while (request := await chunks.next()) is not None:
            if request.upload_id not in ("", upload_id):
                raise InvalidRequest("a stream carries one upload", field="upload_id")
            opened.count(request.chunk, self.federation.config.max_resent_bytes)
            await self._take(opened.upload, request.chunk)
            del request  # or each of many streams would keep up to a megabyte while it waits for the next
            self._hear(upload_id)
            committer.note_received()

    def _hear(self, upload_id: str) -> None:
        """Whoever uploads is alive, also while it says nothing in its conversation."""
        self._desk.heard(upload_id)
        round_ = self.federation.round
        part = round_.find_upload(upload_id) if round_ is not None else None
        if part is not None:
            self.federation.population.seen(part.client, self.federation.clock.wall())

    async def _take(self, upload: Upload, chunk: Chunk) -> None:
        received = upload.received_size
        data = admit_chunk(chunk, received, upload.size_bytes, limits.MAX_CHUNK_BYTES)
        if data:
            await self._desk.write(upload, received, data)

    @translates_errors
    async def GetUploadStatus(
        self, request: transfer_pb2.GetUploadStatusRequest, _context: Context
    ) -> transfer_pb2.GetUploadStatusResponse:
        """Says how far an upload is."""
        await require_own(self.federation, self._desk, request.upload_id)
        await self._desk.opened()
        status = self._desk.status(request.upload_id)
        return transfer_pb2.GetUploadStatusResponse(
            committed_size=status.committed_size,
            body_size_bytes=status.size_bytes,
            state=_STATES[status.state],
            window_bytes=self._desk.window_bytes,
        )

    @translates_errors
    async def FinishUpload(
        self, request: transfer_pb2.FinishUploadRequest, _context: Context
    ) -> transfer_pb2.FinishUploadResponse:
        """Verifies, stores and folds a complete upload."""
        await require_own(self.federation, self._desk, request.upload_id)
        status: UploadStatus = await self._desk.finish(request.upload_id)
        return transfer_pb2.FinishUploadResponse(state=_STATES[status.state], reason=status.reason)

    @translates_errors
    async def GetManifest(
        self,
        request: transfer_pb2.GetManifestRequest,
        context: Context,
    ) -> None:
        """Gives the manifest of a published model."""
        with self.downloads.one(_site()) as site:
            model = self.federation.state.models.get(request.model_sha256)
            if request.model_sha256 != self._last_manifest[0]:
                self._last_manifest = request.model_sha256, _manifest_messages(model.manifest)
            await begin_answer(context)
            for message in self._last_manifest[1]:
                await self._send(message, context, site)

    @translates_errors
    async def ReadChunks(
        self,
        request: transfer_pb2.ReadChunksRequest,
        context: Context,
    ) -> None:
        """Gives the body of a published model from an offset on. What it writes is serialised already."""
        with self.downloads.one(_site()) as site:
            await self._send_body(request, context, site)

    async def _send_body(self, request: transfer_pb2.ReadChunksRequest, context: Context, site: str) -> None:
        model = self.federation.state.models.get(request.model_sha256)
        wanted = wire.read_indexes(request.tensors, len(model.manifest)) or range(len(model.manifest))
        chunk_bytes = min(request.max_chunk_bytes or limits.DEFAULT_CHUNK_BYTES, limits.MAX_CHUNK_BYTES)
        tensors = tuple(request.tensors)
        with self._shared.fetching(request.model_sha256, tensors, lambda: model.body(wanted)) as body:
            if request.read_offset > body.size_bytes:
                message = f"the body has {body.size_bytes} bytes; reading cannot start at {request.read_offset}"
                raise WrongOffset(message, committed_size=body.size_bytes)
            log.debug("download begins", bytes=body.size_bytes - request.read_offset)
            await begin_answer(context)
            try:
                async for chunk in self._chunks(request, chunk_bytes, body):
                    # Counted first: a client that has all it wants hangs up, and this handler ends within the write.
                    self.federation.traffic.sent += chunk.data_bytes
                    await self._send(chunk.message, context, site)
            finally:
                log.debug("download ends")

    async def _send(self, message: transfer_pb2.GetManifestResponse | bytes, context: Context, site: str) -> None:
        """Write a part of what a site downloads, if it is taken in time."""
        try:
            async with asyncio.timeout(STANDSTILL_SECONDS):
                await context.write(message)
        except TimeoutError:
            self.downloads.note_standstill(site)
            log.warning("a download was not taken", client=site, seconds=STANDSTILL_SECONDS)
            await end_standing_still(context)

    async def _chunks(
        self, request: transfer_pb2.ReadChunksRequest, chunk_bytes: int, body: BodyReader
    ) -> AsyncIterator[EncodedChunk]:
        offset, tensors = request.read_offset, tuple(request.tensors)
        while offset < body.size_bytes:
            chunk = await self._shared.get(ChunkKey(request.model_sha256, tensors, offset, chunk_bytes), body)
            yield chunk
            offset += chunk.data_bytes


def _site() -> str:
    """Whose call it is; empty where nobody is asked for a certificate."""
    caller = CALLER.get()
    return caller.name if caller is not None else ""


def _manifest_messages(manifest: Manifest) -> list[transfer_pb2.GetManifestResponse]:
    """The answer to `GetManifest`; its first message has the number of tensors."""
    answer = [transfer_pb2.GetManifestResponse(part=part) for part in wire.manifest_parts(manifest)]
    answer[0].num_tensors = len(manifest)
    return answer


def _training_seconds(header: transfer_pb2.UpdateHeader) -> float:
    # What is no number has no place in a row: JSON cannot say it, and could not be read again.
    if not 0 <= header.training_seconds < math.inf:
        message = f"training_seconds is {header.training_seconds}; it is a number of seconds, 0 or more"
        raise InvalidRequest(message, field="header.training_seconds")
    return header.training_seconds


class _Chunks:
    """The messages of a stream of `WriteChunks`, of which the first says whose upload it is.

    They are read one by one from the context: gRPC's own iterator keeps each in memory until the next one comes.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._first: WrittenChunk | None = None

    async def whose(self) -> str | None:
        """The upload id of the first message; `None` if there is none. To be asked before anything else."""
        self._first = await self._read()
        return None if self._first is None else self._first.upload_id

    async def next(self) -> WrittenChunk | None:
        """The next message; `None` at the end."""
        first, self._first = self._first, None
        return first if first is not None else await self._read()

    async def _read(self) -> WrittenChunk | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message


def add_transfer_to_server(servicer: transfer_pb2_grpc.TransferServiceServicer, server: grpc.aio.Server) -> None:
    """As the generated function, but for the messages with chunks: `ReadChunks` writes bytes, which are a message that
    is serialised already, and `WriteChunks` reads `WrittenChunk`s.
    """
    transfer_pb2_grpc.add_TransferServiceServicer_to_server(servicer, server)
    reading: grpc.RpcMethodHandler[transfer_pb2.ReadChunksRequest, bytes] = grpc.unary_stream_rpc_method_handler(
        servicer.ReadChunks, request_deserializer=transfer_pb2.ReadChunksRequest.FromString
    )
    writing: grpc.RpcMethodHandler[WrittenChunk, transfer_pb2.WriteChunksResponse] = (
        grpc.stream_stream_rpc_method_handler(
            servicer.WriteChunks,
            request_deserializer=decode_write_chunks,
            response_serializer=transfer_pb2.WriteChunksResponse.SerializeToString,
        )
    )
    name = transfer_pb2.DESCRIPTOR.services_by_name["TransferService"].full_name
    server.add_registered_method_handlers(name, {"ReadChunks": reading, "WriteChunks": writing})
