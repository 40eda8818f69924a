"""Upkeep of the state directory. Where the disk refuses a step, it stays undone: the next time will do."""

from __future__ import annotations

import asyncio

import structlog

from fedserver.federation import Federation
from fedserver.store.errors import BackupAtWork
from fedserver.store.facts import LAST_ROUND_FACT, PAUSED, PAUSED_FACT, remembering

log = structlog.get_logger()


async def collect_garbage(federation: Federation) -> None:
    """Throw away what falls out of the retention. Where the disk refuses, it is left for the next time."""
    best = {*federation.best_elsewhere, *([federation.scoreboard.best.version] if federation.scoreboard.best else [])}
    try:
        with federation.disk.may_refuse():
            expired = await asyncio.to_thread(federation.state.collect, federation.config.keep_rounds, best)
            if expired.rounds or expired.models:
                log.debug("collected", rounds=expired.rounds, models=len(expired.models))
    except BackupAtWork as error:
        log.info("nothing is collected now", because=str(error))


async def keep_end(federation: Federation) -> None:
    """Keep for another start how long servers have run by now, and that no order to stop is left to be obeyed.

    Where the disk refuses, neither is kept.
    """
    worked, obeyed = federation.working_time.keeping(federation.now), remembering(LAST_ROUND_FACT, "")
    with federation.disk.may_refuse():
        await federation.state.journal.write(worked, obeyed)


async def keep_last_round(federation: Federation) -> None:
    """Keep that the federation ends after the round at work, for a server that is started before it has."""
    if (round_ := federation.round_at_work) is not None:
        with federation.disk.may_refuse():
            await federation.state.journal.write(remembering(LAST_ROUND_FACT, str(round_.number)))


async def keep_pause(federation: Federation) -> None:
    """Keep whether the federation is paused, for a server that is started again: most pauses are for that."""
    with federation.disk.may_refuse():
        await federation.state.journal.write(remembering(PAUSED_FACT, PAUSED if federation.paused else ""))
