"""The upload desk: what may be uploaded now, how far each upload is, and what becomes of it when it is finished."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from fedserver.coordinator.participation import Outcome, Participation, Stage
from fedserver.coordinator.round import Round
from fedserver.federation import Federation
from fedserver.store.journal import Statement
from fedserver.store.rounds import participation
from fedserver.store.uploads import UpdateFacts, Upload, UploadState, beginning, committing, forgetting, settling
from fedstream.errors import BodyIncomplete, DigestMismatch, ManifestConflict, ManifestRequired, UnknownUpload
from fedstream.manifest import Manifest

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class UploadStatus:
    """How far an upload is."""

    committed_size: int
    size_bytes: int
    state: UploadState
    reason: str = ""


@dataclass(slots=True)
class OpenUpload:
    """An upload at work. A newer stream of it sets `superseded` of the older one and waits for `writer`."""

    upload: Upload
    superseded: asyncio.Event = field(default_factory=asyncio.Event)
    writer: asyncio.Lock = field(default_factory=asyncio.Lock)
    finishing: asyncio.Task[UploadStatus] | None = None

    def take_over(self) -> asyncio.Event:
        """Make an older stream end; returns the event by which a still newer one will end this stream."""
        self.superseded.set()
        self.superseded = asyncio.Event()
        return self.superseded


class Desk:
    """Used from the event loop; the disk is used in threads.

    Args:
        federation: whose round decides which uploads may go on.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._open: dict[str, OpenUpload] = {}
        self._finished: dict[str, UploadStatus] = {}
        self._finished_before: dict[str, UploadStatus] = {}

    async def begin(self, upload_id: str, manifest: Manifest, facts: UpdateFacts) -> OpenUpload:
        """Take a manifest durably, or the same one again.

        Raises:
            UnknownUpload: it is none that the server waits for.
            RoundClosed: the update is no longer waited for.
            ManifestConflict: another manifest was given before.
        """
        part = self._round.require_open(upload_id)
        known = self._open.get(upload_id)
        if known is not None:
            if known.upload.manifest != manifest:
                raise ManifestConflict("another manifest was given for this upload; send that one")
            return known
        assert self._federation.model is not None, "a round is open only when there is a model"
        missing = manifest.indexes_changed_from(self._federation.model.manifest)
        opened = OpenUpload(self._federation.state.uploads.begin(upload_id, manifest, missing, facts))
        self._open[upload_id] = opened
        log.debug("upload begins", client=part.client, bytes=opened.upload.size_bytes)
        self._note_progress(upload_id, opened.upload)
        await self._write(beginning(upload_id, self._round.number, opened.upload))
        return opened

    def require(self, upload_id: str) -> None:
        """Check that an update may come.

        Raises:
            UnknownUpload: it is none that the server waits for.
            RoundClosed: the update is no longer waited for.
        """
        self._round.require_open(upload_id)

    def at_work(self, upload_id: str) -> OpenUpload:
        """The upload that chunks are to go to.

        Raises:
            UnknownUpload: it is none that the server waits for.
            RoundClosed: the update is no longer waited for.
            ManifestRequired: the manifest is missing.
        """
        self._round.require_open(upload_id)
        known = self._open.get(upload_id)
        if known is None:
            raise ManifestRequired("put the manifest of this upload first")
        return known

    async def commit(self, upload_id: str, upload: Upload) -> int:
        """Make what was received durable; returns the committed size.

        Raises:
            RoundClosed: the update is no longer waited for.
        """
        self._round.require_open(upload_id)
        before = upload.committed_size
        committed = await asyncio.to_thread(upload.commit)
        if committed > before:
            await self._write(committing(upload_id, committed))
        self._federation.bytes_received += committed - before
        self._note_progress(upload_id, upload)
        return committed

    def status(self, upload_id: str) -> UploadStatus:
        """How far an upload is.

        Raises:
            UnknownUpload: it is none that the server waits or waited for.
        """
        finished = self._finished_status(upload_id)
        if finished is not None:
            return finished
        part = self._round.of_upload(upload_id)
        known = self._open.get(upload_id)
        committed, size = (known.upload.committed_size, known.upload.size_bytes) if known else (0, 0)
        if not part.is_outstanding:
            return UploadStatus(committed, size, UploadState.CLOSED, part.reason)
        return UploadStatus(committed, size, UploadState.OPEN if known else UploadState.AWAITING_MANIFEST)

    async def finish(self, upload_id: str) -> UploadStatus:
        """Verify and store an upload, and fold it; a second time, say the same again.

        Once begun it goes on to its end, also when the caller goes away.

        Raises:
            UnknownUpload: it is none that the server waits or waited for.
            RoundClosed: the update is no longer waited for.
            ManifestRequired: the manifest is missing.
            BodyIncomplete: bytes are missing.
            DigestMismatch: a tensor is not what its digest says; the upload starts again.
        """
        finished = self._finished_status(upload_id)
        if finished is not None:
            return finished
        known = self.at_work(upload_id)
        if known.finishing is None:
            known.finishing = asyncio.create_task(self._finish(upload_id, known))
        return await asyncio.shield(known.finishing)

    async def _finish(self, upload_id: str, opened: OpenUpload) -> UploadStatus:
        round_ = self._round
        try:
            async with opened.writer:
                self._require_complete(opened.upload)
                part = round_.begin_finish(upload_id)
                log.debug("upload is checked", client=part.client)
                reason = await self._take(part, opened.upload)
        except DigestMismatch:
            self._open.pop(upload_id).upload.drop()
            round_.abandon_finish(upload_id, self._federation.now)
            await self._write(forgetting(upload_id))
            raise
        except BaseException:
            opened.finishing = None
            if round_.of_upload(upload_id).stage is Stage.FINISHING:
                round_.abandon_finish(upload_id, self._federation.now)
            raise
        return await self._settle(round_, part, opened.upload, reason)

    def _require_complete(self, upload: Upload) -> None:
        committed, size = upload.committed_size, upload.size_bytes
        if committed < size:
            message = f"{committed} of {size} bytes are committed; resume there, then finish"
            raise BodyIncomplete(message, committed_size=committed, body_size=size)

    async def _take(self, part: Participation, upload: Upload) -> str:
        await asyncio.to_thread(upload.verify)
        await asyncio.to_thread(upload.seal)
        assert self._federation.intake is not None, "a round has its intake from the start"
        return await self._federation.intake.admit(part, upload.update())

    async def _settle(self, round_: Round, part: Participation, upload: Upload, reason: str) -> UploadStatus:
        upload_id, now, facts = part.upload_id, self._federation.now, upload.facts
        state = UploadState.QUARANTINED if reason else UploadState.ADMITTED
        if reason:
            log.warning("quarantined", client=part.client, reason=reason)
            round_.quarantine(upload_id, reason, now)
        else:
            log.info("update in", client=part.client, bytes=upload.size_bytes, examples=facts.num_examples)
            round_.complete(upload_id, facts.num_examples, facts.metrics, now)
        await self._write(settling(upload_id, state, reason), participation(round_, part, now))
        log.debug("upload is settled", client=part.client)
        self._finished[upload_id] = UploadStatus(upload.size_bytes, upload.size_bytes, state, reason)
        del self._open[upload_id]
        self._federation.touch()
        return self._finished[upload_id]

    async def restore(self) -> None:
        """Take up the uploads of a round that an earlier process left, and fold again what was in."""
        round_, intake = self._round, self._federation.intake
        assert intake is not None, "a revived round has its intake"
        for stored in self._federation.state.uploads.of_round(round_.number):
            part = round_.of_upload(stored.upload_id)
            if stored.state is UploadState.OPEN:
                self._open[stored.upload_id] = OpenUpload(stored.upload)
                continue
            size = stored.upload.size_bytes
            self._finished[stored.upload_id] = UploadStatus(size, size, stored.state, stored.reason)
            if part.outcome is Outcome.COMPLETED:
                refused = await intake.admit(part, stored.upload.update())
                assert not refused, f"an update that was in is refused now: {refused}"

    def clear(self) -> None:
        """The round is over: throw away what did not finish.

        What became of this round's uploads can still be asked until the next round is over.
        """
        for opened in self._open.values():
            opened.superseded.set()
            opened.upload.drop()
        self._finished_before, self._finished, self._open = self._finished, {}, {}

    async def _write(self, *statements: Statement) -> None:
        await self._federation.state.journal.write(*statements)

    @property
    def _round(self) -> Round:
        if self._federation.round is None:
            raise UnknownUpload("no round has opened yet; wait for an offer")
        return self._federation.round

    def _finished_status(self, upload_id: str) -> UploadStatus | None:
        return self._finished.get(upload_id) or self._finished_before.get(upload_id)

    def _note_progress(self, upload_id: str, upload: Upload) -> None:
        self._round.upload_progress(upload_id, upload.committed_size, upload.size_bytes, self._federation.now)
