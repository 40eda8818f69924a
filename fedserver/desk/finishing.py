"""The end of an upload whose part in the round goes on: checked, stored and folded, and then in or quarantined."""

from __future__ import annotations

from dataclasses import replace

import structlog

from fedserver.coordinator.participation import Participation
from fedserver.coordinator.round import Round
from fedserver.desk.tray import OpenUpload, Tray, UploadStatus
from fedserver.store import Upload, UploadState
from fedserver.store.rounds import keeping_part
from fedserver.store.uploads import forgetting, settling
from fedstream.errors import BodyIncomplete, DigestMismatch
from fedstream.outcomes import Outcome

log = structlog.get_logger()


async def take_in(tray: Tray, upload_id: str, opened: OpenUpload) -> UploadStatus:
    """Verify, store and fold an upload at work.

    Raises:
        UnknownUpload: it is none of the round at work.
        RoundClosed: its part in the round has ended.
        BodyIncomplete: bytes are missing.
        DigestMismatch: a tensor is not what its digest says; the upload is thrown away, and may begin again.
    """
    round_, federation = tray.round, tray.federation
    try:
        async with opened.writer:
            _require_complete(opened.upload)
            part = round_.begin_finish(upload_id)
            log.debug("upload is checked", client=part.client)
            survey = await opened.inspection.finish()
            reason = await tray.intake.admit(part, opened.upload.seal, survey)
            return await _settle(tray, round_, part, opened.upload, reason)
    except DigestMismatch:
        round_.abandon_finish(upload_id, federation.now)
        await tray.drop(upload_id, opened)
        await federation.state.journal.write(forgetting(upload_id))
        raise
    except BaseException:
        round_.abandon_finish(upload_id, federation.now)
        await tray.finish_failed(upload_id, opened)
        raise


def _require_complete(upload: Upload) -> None:
    committed, size = upload.committed_size, upload.size_bytes
    if committed < size:
        message = f"{committed} of {size} bytes are committed; resume there, then finish"
        raise BodyIncomplete(message, committed_size=committed, body_size=size)


async def _settle(tray: Tray, round_: Round, part: Participation, upload: Upload, reason: str) -> UploadStatus:
    federation, upload_id, facts = tray.federation, part.upload_id, upload.facts
    now, state = federation.now, UploadState.QUARANTINED if reason else UploadState.ADMITTED
    ended = _ended(part, upload, reason, now)
    # Durable first: should the disk refuse, the client is told to come back, and the round still waits for it.
    await federation.state.journal.write(settling(upload_id, state, reason), keeping_part(round_, ended, now))
    if reason:
        log.warning("quarantined", client=part.client, reason=reason)
        round_.quarantine(upload_id, reason, now)
    else:
        log.info("update in", client=part.client, bytes=upload.size_bytes, examples=facts.num_examples)
        round_.complete(upload_id, facts.num_examples, facts.metrics, now, facts.undefined)
    log.debug("upload is settled", client=part.client)
    federation.touch()
    return tray.finish(upload_id, upload, state, reason)


def _ended(part: Participation, upload: Upload, reason: str, now: float) -> Participation:
    """A client's part as it will be, for its row."""
    ended = replace(part)
    if not reason:
        ended.num_examples, ended.metrics = upload.facts.num_examples, upload.facts.metrics
        ended.undefined = upload.facts.undefined
    ended.end(Outcome.QUARANTINED if reason else Outcome.COMPLETED, reason, now)
    return ended
