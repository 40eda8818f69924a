"""Updates that come too late: their part in the round keeps its outcome, and they are listed beside it.

One that is whole is kept aside; of anything less nothing is taken, and that it came is noted.
"""

from __future__ import annotations

import asyncio

import structlog

from fedserver.aggregation import QuarantineReason
from fedserver.coordinator.participation import Participation
from fedserver.desk.tray import OpenUpload, Tray, UploadStatus
from fedserver.federation import Federation
from fedserver.store import Upload, UploadState
from fedserver.store.rounds import ParticipationRow, late_updates, noting_late, part_of_upload
from fedserver.store.uploads import keeping
from fedstream.errors import DigestMismatch, RoundClosed
from fedstream.outcomes import Outcome

log = structlog.get_logger()


def is_whole_and_late(tray: Tray, upload_id: str, upload: Upload) -> bool:
    """Whether all bytes of an upload are committed, and its part in the round has ended.

    Raises:
        UnknownUpload: it is none of the round at work.
    """
    ended = not tray.round.of_upload(upload_id).is_outstanding
    return ended and upload.committed_size == upload.size_bytes


async def keep_late(tray: Tray, upload_id: str, opened: OpenUpload) -> UploadStatus:
    """Verify an update that is whole and late, and keep it aside.

    Raises:
        UnknownUpload: it is none of the round at work.
        RoundClosed: a tensor is not what its digest says; the upload is thrown away.
    """
    round_ = tray.round
    part = round_.of_upload(upload_id)
    reason = f"{_reason(round_.number, part)}; it was kept aside"
    try:
        async with opened.writer:
            await opened.inspection.finish()
            await asyncio.to_thread(opened.upload.seal)
            kept = keeping(upload_id, round_.number, opened.upload, UploadState.QUARANTINED, reason)
            await tray.federation.state.journal.write(kept, noting_late(round_.number, part.rank, reason))
    except DigestMismatch as error:
        await tray.drop(upload_id, opened)
        raise RoundClosed(f"round {round_.number} does not wait for this update", round=round_.number) from error
    except BaseException:
        await tray.finish_failed(upload_id, opened)
        raise
    log.warning("update came too late", client=part.client, reason=reason)
    return tray.finish(upload_id, opened.upload, UploadState.QUARANTINED, reason)


async def note_late(tray: Tray, upload_id: str) -> None:
    """Take note, once, that an update was offered whose part in a round had ended; nothing of it is taken.

    Raises:
        RoundClosed: it is of an earlier round.
    """
    federation = tray.federation
    known = _part_of(federation, upload_id)
    if known is None:
        return
    number, part = known
    is_over = part.outcome not in (None, Outcome.COMPLETED, Outcome.QUARANTINED)
    # What was said of it first stays, be it by an earlier process: the whole update may be kept aside.
    if is_over and part.rank not in late_updates(federation.state.database, number):
        reason = f"{_reason(number, part)}; nothing of it was taken"
        log.warning("update came too late", client=part.client, reason=reason)
        await federation.state.journal.write(noting_late(number, part.rank, reason))
    if federation.round is None or number != federation.round.number:
        raise RoundClosed(f"round {number} is over", round=number)


def _part_of(federation: Federation, upload_id: str) -> tuple[int, Participation | ParticipationRow] | None:
    """The round and the part in it that an upload belongs to: of the round at work, or of one that is over."""
    round_ = federation.round
    if round_ is not None and (found := round_.find_upload(upload_id)) is not None:
        return round_.number, found
    return part_of_upload(federation.state.database, upload_id)


def _reason(number: int, part: Participation | ParticipationRow) -> str:
    ended = f"{part.outcome.value}: {part.reason}" if part.outcome is not None else part.reason
    return f"{QuarantineReason.STALE_ROUND.value}: an update came after its part in round {number} had ended ({ended})"
