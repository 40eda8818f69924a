"""The uploads that an earlier process left: taken up where they were, and what was in is folded again."""

from __future__ import annotations

import asyncio

import structlog

from fedserver.desk.tray import Tray
from fedserver.store import DamagedFile, UploadState
from fedserver.store.rounds import keeping
from fedserver.store.uploads import StoredUpload, forgetting, resetting
from fedstream.outcomes import Outcome

log = structlog.get_logger()


async def restore(tray: Tray) -> None:
    """Fill the tray with what is stored of the round at work.

    A stored update that is no longer what it was is asked for again, and said loudly.
    """
    # In a thread: a thousand manifests take seconds to read.
    for stored in await asyncio.to_thread(tray.federation.state.uploads.of_round, tray.round.number):
        if tray.round.find_upload(stored.upload_id) is None:  # begun when its own round was over
            await asyncio.to_thread(stored.upload.drop)
            await tray.federation.state.journal.write(forgetting(stored.upload_id))
            continue
        if stored.state is UploadState.OPEN:
            await _go_on(tray, stored)
            continue
        try:
            await _fold_again(tray, stored)
        except DamagedFile as error:
            log.error("a stored update is damaged and is asked for again", error=str(error))
            await _ask_again(tray, stored)


async def _go_on(tray: Tray, stored: StoredUpload) -> None:
    left = stored.upload.committed_size
    if left < stored.committed_size:
        await tray.federation.state.journal.write(resetting(stored.upload_id, left))
    tray.put(stored.upload_id, stored.upload)


async def _fold_again(tray: Tray, stored: StoredUpload) -> None:
    part, update = tray.round.of_upload(stored.upload_id), stored.upload.update()
    if part.outcome is Outcome.COMPLETED:
        await asyncio.to_thread(update.check)
        refused = await tray.intake.admit(part, lambda: update)
        assert not refused, f"an update that was in is refused now: {refused}"
    tray.finish(stored.upload_id, stored.upload, stored.state, stored.reason)


async def _ask_again(tray: Tray, stored: StoredUpload) -> None:
    round_, now = tray.round, tray.federation.now
    round_.reopen(stored.upload_id, now)
    await tray.federation.state.journal.write(forgetting(stored.upload_id), *keeping(round_, now))
    await asyncio.to_thread(stored.upload.drop)
