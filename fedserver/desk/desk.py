"""The desk itself: answers the calls about uploads, each once it is known whether the upload may go on."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import structlog

from fedserver.desk.finishing import take_in
from fedserver.desk.late import is_whole_and_late, keep_late, note_late
from fedserver.desk.restoring import restore
from fedserver.desk.threads import ByteThreads
from fedserver.desk.tray import OpenUpload, Tray, UploadStatus
from fedserver.desk.window import window_of
from fedserver.federation import Federation
from fedserver.store import UpdateFacts, Upload, UploadState
from fedserver.store.uploads import beginning, committing, forgetting
from fedstream.body import Bytes
from fedstream.errors import ManifestConflict, ManifestRequired, ProtocolError, RoundClosed, UnknownUpload
from fedstream.manifest import Manifest

log = structlog.get_logger()
T = TypeVar("T")


class Desk:
    """Used from the event loop; the disk is used in threads.

    Nothing is true here before it is durable: a step whose recording the disk refuses has not happened, and may be
    repeated.

    Args:
        federation: whose round decides which uploads may go on.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._threads = ByteThreads()
        self._tray = Tray(federation, self._threads)
        # Set once all is known that an earlier process left. Until then nobody may be told how far an upload is, or
        # begin one: it may be one of those.
        self._restored = asyncio.Event()

    async def begin(self, upload_id: str, manifest: Manifest, facts: UpdateFacts) -> OpenUpload:
        """Take a manifest durably, or the same one again.

        Raises:
            UnknownUpload: it is none that the server waits for.
            RoundClosed: the update is no longer waited for.
            ManifestConflict: another manifest was given before.
        """
        await self.require(upload_id)
        # As a task of its own: a caller that goes away must not leave an open file behind that nobody knows.
        return await _to_its_end(
            asyncio.create_task(self._begin(upload_id, manifest, facts), name=f"begin upload {upload_id}")
        )

    async def _begin(self, upload_id: str, manifest: Manifest, facts: UpdateFacts) -> OpenUpload:
        async with self._tray.changing[upload_id]:
            known = self._tray.open.get(upload_id)
            if known is None:
                self._tray.round.require_open(upload_id)  # once more: its part may have ended while this waited
                known = await self._begin_anew(upload_id, manifest, facts)
            elif (known.upload.manifest, known.upload.facts.encoded) != (manifest, facts.encoded):
                raise ManifestConflict("another manifest was given for this upload; send that one")
            self.heard(upload_id)
            return known

    async def _begin_anew(self, upload_id: str, manifest: Manifest, facts: UpdateFacts) -> OpenUpload:
        federation, round_ = self._federation, self._tray.round
        missing = manifest.indexes_changed_from(federation.model.manifest)
        upload = await asyncio.to_thread(federation.state.uploads.begin, upload_id, manifest, missing, facts)
        try:
            await federation.state.journal.write(beginning(upload_id, round_.number, upload))
            round_.require_open(upload_id)
        except RoundClosed:
            await asyncio.to_thread(upload.drop)
            await federation.state.journal.write(forgetting(upload_id))
            raise
        except BaseException:
            await asyncio.to_thread(upload.drop)
            raise
        log.debug("upload begins", client=round_.of_upload(upload_id).client, bytes=upload.size_bytes)
        return self._tray.put(upload_id, upload)

    @property
    def window_bytes(self) -> int:
        """How much of an upload of the round at work may be in flight; 0 where this process had no round yet."""
        return window_of(len(self._federation.round.participations)) if self._federation.round is not None else 0

    async def require(self, upload_id: str) -> None:
        """Check that an update may come. That one came too late is taken note of.

        Raises:
            UnknownUpload: it is none that the server waits for.
            RoundClosed: the update is no longer waited for.
        """
        await self.opened()
        try:
            self._tray.round.require_open(upload_id)
        except (RoundClosed, UnknownUpload):
            await note_late(self._tray, upload_id)
            raise

    async def at_work(self, upload_id: str) -> OpenUpload:
        """The upload that chunks are to go to.

        Raises:
            UnknownUpload: it is none that the server waits for.
            RoundClosed: the update is no longer waited for.
            ManifestRequired: the manifest is missing.
        """
        await self.require(upload_id)
        known = self._tray.open.get(upload_id)
        if known is None:
            raise ManifestRequired("put the manifest of this upload first")
        return known

    def heard(self, upload_id: str) -> None:
        """Take note that a manifest or a chunk came for an upload, be it empty or known: its lease begins anew."""
        self._tray.round.heard_from_upload(upload_id, self._federation.now)

    async def write(self, upload: Upload, offset: int, data: Bytes) -> None:
        """Add bytes of a body; they are not durable before `commit`.

        Raises:
            WrongOffset: bytes before `offset` are missing.
        """
        await self._threads.write(upload.write, offset, data)

    async def commit(self, upload_id: str, upload: Upload) -> int:
        """Make what was received durable; returns the committed size.

        Raises:
            RoundClosed: the update is no longer waited for.
        """
        self._tray.round.require_open(upload_id)
        before = upload.committed_size
        if upload.received_size > before:
            synced = await self._threads.sync(upload.sync)
            await self._federation.state.journal.write(committing(upload_id, synced))
            upload.committed(synced)
        self._federation.traffic.received += upload.committed_size - before
        self._threads.let_go(upload.committed_size - before)
        self._tray.note_progress(upload_id, upload)
        if (opened := self._tray.open.get(upload_id)) is not None:
            opened.inspection.go_on()
        return upload.committed_size

    def status(self, upload_id: str) -> UploadStatus:
        """How far an upload is; to be asked once the desk is `opened`.

        Raises:
            UnknownUpload: it is none that the server waits or waited for.
        """
        finished = self._tray.finished(upload_id)
        if finished is not None:
            return finished
        part = self._tray.round.of_upload(upload_id)
        known = self._tray.open.get(upload_id)
        committed, size = (known.upload.committed_size, known.upload.size_bytes) if known else (0, 0)
        if not part.is_outstanding:
            return UploadStatus(committed, size, UploadState.CLOSED, part.reason)
        return UploadStatus(committed, size, UploadState.OPEN if known else UploadState.AWAITING_MANIFEST)

    async def finish(self, upload_id: str) -> UploadStatus:
        """Verify and store an upload, and fold it; a second time, say the same again.

        Once begun it goes on to its end, also when the caller goes away. An update that is whole, and whose part in the
        round at work has ended meanwhile, is kept aside as late.

        Raises:
            UnknownUpload: it is none that the server waits or waited for.
            RoundClosed: the update is no longer waited for.
            ManifestRequired: the manifest is missing.
            BodyIncomplete: bytes are missing.
            DigestMismatch: a tensor is not what its digest says; the upload starts again.
        """
        await self.opened()
        finished = self._tray.finished(upload_id)
        if finished is not None:
            return finished
        known = self._tray.open.get(upload_id)
        if known is None or not is_whole_and_late(self._tray, upload_id, known.upload):
            known = await self.at_work(upload_id)
        if known.finishing is None:
            end = keep_late if is_whole_and_late(self._tray, upload_id, known.upload) else take_in
            ending = end(self._tray, upload_id, known)
            known.finishing = asyncio.create_task(ending, name=f"finish upload {upload_id}")
        return await _to_its_end(known.finishing)

    # Between processes and between rounds.

    def open(self) -> None:
        """Answer the calls that waited until everything was restored that an earlier process left."""
        self._restored.set()

    async def opened(self) -> None:
        """Return once the desk is open."""
        await self._restored.wait()

    async def restore(self) -> None:
        """Take up the uploads of a round that an earlier process left, and fold again what was in.

        A stored update that is no longer what it was is asked for again, and said loudly.
        """
        await restore(self._tray)

    async def clear(self) -> None:
        """The round is over: throw away what did not finish.

        What became of this round's uploads can still be asked until the next round is over, and as long as its updates
        are kept.
        """
        left = self._tray.open
        self._tray.clear()
        for opened in left.values():
            opened.superseded.set()
        # One that is late may still be on its way in.
        dropped = [one for one in left.items() if one[1].finishing is None or one[1].finishing.done()]
        await asyncio.gather(*(self._tray.drop(upload_id, opened) for upload_id, opened in dropped))
        self._tray.changing.clear()

    def close(self) -> None:
        """Let go of the threads. No call about uploads may be at work any more."""
        for opened in self._tray.open.values():
            opened.inspection.stop()
        self._threads.close()


async def _to_its_end(step: asyncio.Task[T]) -> T:
    """What a step gives that goes on when its caller goes away, who then is not told of an error: the log is."""
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        step.add_done_callback(_say_how_it_failed)
        raise


def _say_how_it_failed(step: asyncio.Task[Any]) -> None:
    """In one line, and only of what is no decision: peers may hang up as often as they like."""
    error = None if step.cancelled() else step.exception()
    if error is not None and not isinstance(error, ProtocolError):
        log.error("failed after its client had gone", step=step.get_name(), error=f"{type(error).__name__}: {error}")
