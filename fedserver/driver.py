"""Rounds, one after the other, until all are done or something ends the federation."""

from __future__ import annotations

import structlog

from fedserver.desk import Desk
from fedserver.federation import Federation, FederationState, ref_of
from fedserver.intake import Intake
from fedserver.phases import Stopped, run_round
from fedserver.store import StateError
from fedserver.store.facts import LAST_ROUND_FACT
from fedserver.store.rounds import received_bytes, unfinished
from fedserver.upkeep import collect_garbage

log = structlog.get_logger()

_LONGEST_RETRY_SECONDS = 300.0
"""To which the delay after rounds that fail one after the other grows, unless it is longer from the start."""


async def run_rounds(federation: Federation, desk: Desk) -> str:
    """Run rounds until all are done or something ends the federation; returns why it ended."""
    number, failures = federation.history[-1].number + 1 if federation.history else 1, 0
    revived = await revive(federation, desk)
    if last := federation.state.fact(LAST_ROUND_FACT):
        log.warning("it was told before to end after this round", round=last, hint="another start then goes on")
        federation.stop(finish_round=True)
    federation.has_caught_up = True
    if revived is None and (stopping := federation.scoreboard.why_stopping()) is not None:
        return stopping  # an earlier process had come to that end, and was killed in its last words
    while number <= federation.config.rounds:
        try:
            work = await run_round(federation, number, revived)
        except Stopped as stopped:
            return str(stopped)
        revived = None
        await desk.clear()
        await collect_garbage(federation)
        if federation.stop_requested.is_set():
            return "stopped by the coordinator"
        stopping = federation.scoreboard.why_stopping()
        if stopping is not None:
            return stopping
        failures = 0 if work.model is not None else failures + 1
        if failures and number < federation.config.rounds:
            await _rest_after_failure(federation, failures)
        number += 1
    return f"all {federation.config.rounds} rounds done"


async def _rest_after_failure(federation: Federation, failures: int) -> None:
    seconds, failed = _retry_delay(federation.config.retry_delay_seconds, failures), federation.history[-1]
    why = f"for {seconds:.0f} s before the next round: round {failed.number} failed ({failed.reason})"
    federation.stand(FederationState.WAITING, why)
    await federation.rest(seconds)


def _retry_delay(seconds: float, failures: int) -> float:
    """Doubled with each further failure: what fails at once, as at a site without its disk, would use up all rounds."""
    return min(seconds * 2.0 ** min(failures - 1, 30), max(seconds, _LONGEST_RETRY_SECONDS))


def is_over(federation: Federation) -> bool:
    """Whether a server that is started again, with the same settings, would have no round to run."""
    history = federation.history
    all_done = bool(history) and history[-1].number >= federation.config.rounds
    return all_done or federation.scoreboard.why_stopping() is not None


async def revive(federation: Federation, desk: Desk) -> Intake | None:
    """Take up the round that an earlier process left at work, with its uploads and what was in.

    Raises:
        StateError: it started from another model than the last one there is.
    """
    left = unfinished(federation.state.database)
    if left is not None and not left.participations:
        log.warning("a round was opened for nobody; it is opened anew", round=left.row.number)
    if left is None or not left.participations:
        desk.open()
        return None
    if left.row.base_sha256_hex != federation.model.digest.hex:
        message = (
            f"round {left.row.number} started from model {left.row.base_sha256_hex[:12]}, but the last one stored is"
        )
        raise StateError(f"{message} {federation.model.digest}; restore a backup (`fedserver restore`)")
    revived = federation.take_up(left.revive(ref_of(federation.model), federation.now))
    round_ = revived.round
    # Before an update that is damaged is asked for again: it was received all the same.
    federation.traffic.received = received_bytes(federation.state.database, round_.number)
    await desk.restore()
    desk.open()
    log.info("going on", round=round_.number, updates_in=len(round_.completed))
    for part in round_.participations:
        if part.is_outstanding:
            federation.sessions.say([round_.offer_of(part)])  # it may have connected while the round was being read
    return revived
