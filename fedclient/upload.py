"""Sending an update: manifest, the tensors the server lacks, finish; resumed at `committed_size` after any cut.

    MANIFEST --missing tensors--> BODY --all sent--> FINISH --ack--> delivered
    BODY, FINISH --cut--> STATUS --> MANIFEST (the server has none) | BODY | FINISH | dropped

What is sent but not yet committed never exceeds the window, so that no cut costs more than that.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog

from fedclient import requests
from fedclient.calls import (
    LONG_CALL_SECONDS,
    QUICK_CALL_SECONDS,
    Patience,
    Stalled,
    moving,
    send,
    translated,
    until_done,
)
from fedclient.connection import Connection
from fedclient.download import OnBytes
from fedclient.requests import Parcel
from fedstream import wire
from fedstream.body import BodyReader, make_chunk
from fedstream.encodings import Encoding
from fedstream.errors import (
    BodyIncomplete,
    ChecksumMismatch,
    DigestMismatch,
    FedstreamError,
    ManifestRequired,
    RoundClosed,
    Superseded,
    TransportError,
    UnknownUpload,
    WrongOffset,
)
from fedstream.v1 import transfer_pb2
from fedstream.weights_file import WeightsFileError

log = structlog.get_logger()

_MAX_RESTARTS = 3
"""How often an upload may begin anew, or be taken over by another stream, before something is wrong for good."""

_QUICK_BYTES = 256 << 10
"""Before a larger chunk, a stream sends an empty one: the server waits for 30 s to hear whose stream it is, and a slow
line may take minutes for what follows."""


class UpdateUnwanted(FedstreamError):
    """The server does not wait for this update (any more). The message says why."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How updates are sent, as negotiated: chunks and window in bytes, and the encoding of tensors."""

    max_chunk_bytes: int
    window_bytes: int
    encoding: Encoding = Encoding.RAW


@dataclass(frozen=True, slots=True)
class _CutStream:
    """A stream of chunks of some size that broke, and what was committed when it began.

    Only the server's next word tells what got through: it commits what it has when a stream breaks.
    """

    chunk_bytes: int
    committed: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """The server has the update durably; `quarantined` is why it was kept aside, empty if it is in the round."""

    quarantined: str


async def is_admitted(connection: Connection, upload_id: str) -> bool:
    """Whether the server has that update in its round.

    Raises:
        FedstreamError: it does not know it any more, or cannot be asked.
    """
    status = await _ask_status(connection, upload_id)
    return bool(status.state == transfer_pb2.UPLOAD_STATE_ADMITTED)


async def _ask_status(connection: Connection, upload_id: str) -> transfer_pb2.GetUploadStatusResponse:
    with translated():
        request = requests.get_upload_status(upload_id)
        return await connection.transfer.GetUploadStatus(request, timeout=QUICK_CALL_SECONDS)


class Upload:
    """One update on its way.

    Args:
        connection: to the server.
        parcel: what to send.
        terms: how.
        patience: how to come back after a cut.
        on_bytes: told the bytes committed and the bytes in all, also at the beginning of each try to go on.
    """

    def __init__(
        self, connection: Connection, parcel: Parcel, terms: Terms, patience: Patience, on_bytes: OnBytes
    ) -> None:
        self._connection = connection
        self._parcel = parcel
        self._terms = terms
        self._patience = patience
        self._on_bytes = on_bytes
        self._body: BodyReader | None = None
        self._window = terms.window_bytes
        self._committed = 0
        self._highest = 0
        self._began_at = 0  # where the stream of chunks began
        self._restarts = 0
        self._cut: _CutStream | None = None

    async def run(self) -> Delivery:
        """Send the update until the server acknowledges it.

        Raises:
            UpdateUnwanted: the round is over.
            ProtocolError: the server found a defect, or another update was already begun for this offer.
        """
        try:
            return await until_done(self._once, lambda: self._highest, self._patience, "sending the update")
        except (RoundClosed, UnknownUpload) as error:
            raise UpdateUnwanted(error.message) from error
        finally:
            self._close_body()

    async def _once(self) -> Delivery:
        try:
            if self._body is not None:
                self._on_bytes(self._committed, self._body.size_bytes)
            if self._body is None or not await self._can_resume(self._body):
                self._body = await self._put_manifest()
            await self._write_body(self._body)
            return await self._finish()
        except Stalled:
            self._connection.chunk_size.note_stall(self._chunk_bytes())
            raise
        except (WrongOffset, ChecksumMismatch, BodyIncomplete) as error:
            raise TransportError(error.message) from error  # documented as: resume at `committed_size`
        except (ManifestRequired, DigestMismatch, Superseded) as error:
            self._restart_after(error)
            raise TransportError(error.message) from error

    def _restart_after(self, error: ManifestRequired | DigestMismatch | Superseded) -> None:
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise error
        log.warning("the upload begins anew", because=error.message)
        self._close_body()

    def _close_body(self) -> None:
        if self._body is not None:
            self._body.close()
        self._body = None

    async def _can_resume(self, body: BodyReader) -> bool:
        """Ask how far the server is; whether it can go on from there with the body as agreed."""
        status = await _ask_status(self._connection, self._parcel.upload_id)
        if status.state == transfer_pb2.UPLOAD_STATE_CLOSED:
            raise UpdateUnwanted("the round closed before the update was there")
        if status.state in (transfer_pb2.UPLOAD_STATE_ADMITTED, transfer_pb2.UPLOAD_STATE_QUARANTINED):
            self._commit(body.size_bytes, body)
            return True
        if status.state != transfer_pb2.UPLOAD_STATE_OPEN or status.body_size_bytes != body.size_bytes:
            self._close_body()
            return False
        self._hear_window(status.window_bytes)
        self._commit(status.committed_size, body)
        self._learn_of_cut()
        log.info("resuming the upload", committed=self._committed, of=body.size_bytes)
        return True

    def _learn_of_cut(self) -> None:
        cut, self._cut = self._cut, None
        if cut is not None and self._committed <= cut.committed:
            self._connection.chunk_size.note_cut(cut.chunk_bytes)

    async def _put_manifest(self) -> BodyReader:
        with translated():
            messages = requests.put_manifest(self._parcel)
            answer = await self._connection.transfer.PutManifest(messages, timeout=LONG_CALL_SECONDS)
        entries = self._parcel.manifest.entries
        missing = wire.read_indexes(answer.missing_tensors, len(entries))
        body = BodyReader([self._parcel.spans[entries[index].name] for index in missing])
        self._hear_window(answer.window_bytes)
        self._commit(answer.committed_size, body)
        log.info("sending the update", bytes=body.size_bytes, committed=self._committed, tensors=len(missing))
        return body

    def _hear_window(self, window_bytes: int) -> None:
        self._window = window_bytes or self._terms.window_bytes

    async def _write_body(self, body: BodyReader) -> None:
        if self._committed == body.size_bytes:
            return
        call: Any = self._connection.transfer.WriteChunks()
        self._began_at = self._committed
        try:
            await self._send_chunks(call, body)
            with translated():
                await call.done_writing()
            while await self._hear_commit(call, body):
                pass
        except Stalled:
            raise
        except TransportError:
            self._cut = _CutStream(self._chunk_bytes(), self._began_at)
            raise
        finally:
            call.cancel()
        if self._committed < body.size_bytes:
            raise TransportError(f"the server ended the stream at {self._committed} of {body.size_bytes} bytes")

    async def _send_chunks(self, call: Any, body: BodyReader) -> None:
        offset = self._committed
        if min(self._chunk_bytes(), body.size_bytes - offset) > _QUICK_BYTES:
            await send(call, requests.write_chunk(self._parcel.upload_id, make_chunk(offset, b"")))
        while offset < body.size_bytes:
            data = await asyncio.to_thread(body.read, offset, self._chunk_bytes())  # the disk may be slow
            if not data:
                raise WeightsFileError(
                    f"the update ends at {offset} of {body.size_bytes} bytes: its file was cut short"
                )
            while offset + len(data) > self._committed + self._window:
                if not await self._hear_commit(call, body):
                    raise TransportError("the server ended the stream")
            await send(call, requests.write_chunk(self._parcel.upload_id, make_chunk(offset, data)))
            offset += len(data)

    def _chunk_bytes(self) -> int:
        # Half the window at most: one half is sent while the other becomes durable, and no end waits for the other.
        return max(1, min(self._terms.max_chunk_bytes, self._window // 2, self._connection.chunk_size.most_bytes))

    async def _hear_commit(self, call: Any, body: BodyReader) -> bool:
        """Take in one `committed_size`; whether there was one before the stream's end."""
        with translated():
            async with moving():
                answer = await call.read()
        if not isinstance(answer, transfer_pb2.WriteChunksResponse):
            return False
        self._commit(answer.committed_size, body)
        self._connection.chunk_size.note_run(self._committed - self._began_at)
        return True

    def _commit(self, committed_size: int, body: BodyReader) -> None:
        self._committed = min(committed_size, body.size_bytes)
        self._highest = max(self._highest, self._committed)
        self._on_bytes(self._committed, body.size_bytes)

    async def _finish(self) -> Delivery:
        request = requests.finish_upload(self._parcel.upload_id)
        with translated():
            answer = await self._connection.transfer.FinishUpload(request, timeout=LONG_CALL_SECONDS)
        if answer.state == transfer_pb2.UPLOAD_STATE_QUARANTINED:
            return Delivery(answer.reason or "no reason given")
        return Delivery("")
