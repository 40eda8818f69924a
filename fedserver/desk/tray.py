"""What the desk has at hand: the uploads at work, and what became of those that are finished."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from fedserver.coordinator.round import Round
from fedserver.desk.inspection import Inspection
from fedserver.desk.threads import ByteThreads
from fedserver.federation import Federation
from fedserver.intake import Intake
from fedserver.store import Upload, UploadState
from fedserver.store.uploads import ended_upload
from fedstream.body import Chunk
from fedstream.errors import LimitExceeded, UnknownUpload

_FREE_BEGINNINGS = 3
"""How often an update may come as a whole, as after a digest that did not match, before its bytes count as resent."""

_FRAMING_BYTES = 64
"""What a chunk without new bytes counts beside its data: about what it costs on the line, so that empty ones are not
free. Chunks with new bytes have no such price, however small: the size of the body bounds how many there can be."""


@dataclass(frozen=True, slots=True)
class UploadStatus:
    """How far an upload is."""

    committed_size: int
    size_bytes: int
    state: UploadState
    reason: str = ""


@dataclass(slots=True)
class Received:
    """How many bytes of an update came, new or again, and how often it was begun, as anew after a wrong digest."""

    num_bytes: int = 0
    beginnings: int = 0


@dataclass(slots=True)
class OpenUpload:
    """An upload at work. A newer stream of it sets `superseded` of the older one and waits for `writer`."""

    upload: Upload
    inspection: Inspection
    superseded: asyncio.Event = field(default_factory=asyncio.Event)
    writer: asyncio.Lock = field(default_factory=asyncio.Lock)
    finishing: asyncio.Task[UploadStatus] | None = None
    received: Received = field(default_factory=Received)

    def count(self, chunk: Chunk, max_resent_bytes: int) -> None:
        """Count a chunk, with new bytes or without, against what may come again. A server that restarts begins at 0.

        Raises:
            LimitExceeded: over `max_resent_bytes` came again, or in chunks without new bytes.
        """
        came, received = len(chunk.data), self.received
        beginnings = min(received.beginnings, _FREE_BEGINNINGS)
        is_new = chunk.write_offset <= self.upload.received_size < chunk.write_offset + came
        is_free = is_new and received.beginnings <= _FREE_BEGINNINGS
        received.num_bytes += came if is_free else came + _FRAMING_BYTES
        if received.num_bytes > beginnings * self.upload.size_bytes + max_resent_bytes:
            raise LimitExceeded(
                f"over {max_resent_bytes} bytes of this update came more than once, {_FRAMING_BYTES} counted for each "
                "chunk without new bytes; the round goes on without it",
                limit="max_resent_bytes",
            )

    def take_over(self) -> asyncio.Event:
        """Make an older stream end; returns the event by which a still newer one will end this stream."""
        self.superseded.set()
        self.superseded = asyncio.Event()
        return self.superseded


class Tray:
    """The uploads of the round at work, by upload id. In memory only: rows are written first, and this follows them.

    Args:
        federation: whose round it is.
        threads: for the bytes.
    """

    def __init__(self, federation: Federation, threads: ByteThreads) -> None:
        self.federation, self.threads = federation, threads
        self.open: dict[str, OpenUpload] = {}
        self.changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By upload id, for whoever opens or removes its files: those of each beginning have the same name."""
        self._received: dict[str, Received] = {}
        self._finished: dict[str, UploadStatus] = {}
        # Of the round before. With `keep_rounds` 0 its rows are gone, and how they ended can be asked all the same.
        self._finished_before: dict[str, UploadStatus] = {}

    @property
    def intake(self) -> Intake:
        """The round at work, or the last one, with its updates.

        Raises:
            UnknownUpload: there was none yet.
        """
        if self.federation.intake is None:
            raise UnknownUpload("no round has opened yet; wait for an offer")
        return self.federation.intake

    @property
    def round(self) -> Round:
        """The round at work, or the last one; see `intake`."""
        return self.intake.round

    def put(self, upload_id: str, upload: Upload) -> OpenUpload:
        """An upload is at work from now on."""
        inspection = Inspection(upload, self.intake.base, self.intake.survey(), self.threads)
        received = self._received.setdefault(upload_id, Received())
        received.beginnings += 1
        self.open[upload_id] = OpenUpload(upload, inspection, received=received)
        self.note_progress(upload_id, upload)
        return self.open[upload_id]

    def note_progress(self, upload_id: str, upload: Upload) -> None:
        """Bytes of an upload became durable: the round is told."""
        self.round.upload_progress(upload_id, upload.committed_size, upload.size_bytes, self.federation.now)

    async def drop(self, upload_id: str, opened: OpenUpload) -> None:
        """Take an upload away, which may be of a round that is over, and throw away what was received."""
        if self.open.get(upload_id) is opened:
            del self.open[upload_id]
        opened.inspection.stop()
        # Its row is gone already, or goes now: where the disk refuses, the next start removes the file.
        with self.federation.disk.may_refuse():
            async with self.changing[upload_id]:
                await self.threads.sync(opened.upload.drop)  # which waits for an fsync that is under way

    async def finish_failed(self, upload_id: str, opened: OpenUpload) -> None:
        """An upload could not be finished. Its client may try again, unless the round is over by now: then it goes."""
        opened.finishing = None
        if self.open.get(upload_id) is not opened:
            await self.drop(upload_id, opened)

    def finish(self, upload_id: str, upload: Upload, state: UploadState, reason: str) -> UploadStatus:
        """An upload has ended, and its row says how."""
        self._finished[upload_id] = UploadStatus(upload.size_bytes, upload.size_bytes, state, reason)
        self.open.pop(upload_id, None)
        return self._finished[upload_id]

    def finished(self, upload_id: str) -> UploadStatus | None:
        """What became of an upload of this round, of the one before, or of one whose updates are kept; else `None`."""
        known = self._finished.get(upload_id) or self._finished_before.get(upload_id)
        if known is None and (ended := ended_upload(self.federation.state.database, upload_id)) is not None:
            size, state, reason = ended
            known = UploadStatus(size, size, state, reason)
        return known

    def clear(self) -> None:
        """The round is over. What became of its uploads can still be asked."""
        self._finished_before, self._finished, self.open, self._received = self._finished, {}, {}, {}
