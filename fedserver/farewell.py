"""How a federation says good-bye: every client hears how it ended, and has time to fetch the final models."""

from __future__ import annotations

import asyncio

import structlog

from fedserver.coordinator.effects import TellFederationOutcome
from fedserver.coordinator.population import ClientState
from fedserver.coordinator.round import COMING_BACK_SECONDS
from fedserver.federation import Federation, FederationState, ref_of
from fedserver.phases import names_of
from fedserver.sessions import LONGEST_FAREWELL_SECONDS
from fedstream.outcomes import Outcome

log = structlog.get_logger()

_LISTING_SECONDS = 1.0


async def say_farewell(federation: Federation, reason: str) -> None:
    """Tell every client how the federation ended, and wait for them to hear it."""
    best, last = federation.best_model, federation.model
    log.debug("phase", name="farewell")
    was_stopped = federation.stop_now.is_set()
    outcome = TellFederationOutcome("", reason, ref_of(last), ref_of(best), federation.scoreboard.best_metrics or {})
    federation.outcome = outcome
    federation.sessions.say(
        TellFederationOutcome(client, reason, outcome.last, outcome.best, outcome.metrics)
        for client in federation.sessions.clients
    )
    until = federation.now + LONGEST_FAREWELL_SECONDS
    while federation.now < until:
        are_back = await _let_come_back(federation)
        if await _stopped_before_drained(federation, until, heeds=not was_stopped):
            left = names_of(sorted(federation.sessions.clients))
            log.warning("ending before these sites have the final models", sites=left)
            return
        # One may be cut off, or killed, between hearing the outcome and having the final model.
        if not are_back or not _cut_off(federation):
            return


async def _stopped_before_drained(federation: Federation, until: float, *, heeds: bool) -> bool:
    """Wait until all sessions have ended, or the time is up; whether a stop came before.

    Not that stop by which the federation came to its end, which is no reason to leave its sites without a model.
    """
    telling = asyncio.create_task(_tell_who_fetches(federation))
    drained = asyncio.create_task(federation.sessions.drained(until - federation.now))
    stopped = asyncio.create_task(federation.stop_now.wait() if heeds else asyncio.Event().wait())
    try:
        await asyncio.wait({drained, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return not drained.done()
    finally:
        for task in (telling, drained, stopped):
            task.cancel()
        await asyncio.gather(telling, drained, stopped, return_exceptions=True)


async def _tell_who_fetches(federation: Federation) -> None:
    """Say whose sessions are open still, and say it anew once a second as they end. Never returns."""
    while True:
        if fetching := sorted(federation.sessions.clients):
            federation.stand(FederationState.FINISHING, f"the final models are fetched by {names_of(fetching)}")
        await asyncio.sleep(_LISTING_SECONDS)


async def _let_come_back(federation: Federation) -> bool:
    """Give the clients of the last round time to come back, if they were cut off at the very end, or killed.

    Whoever connects now is told at once. Returns whether all have come.
    """
    missing, give_up = _cut_off(federation), federation.now + COMING_BACK_SECONDS
    while missing and federation.now < give_up and not federation.stop_now.is_set():
        names = names_of(sorted(missing))
        federation.stand(FederationState.FINISHING, f"{names} may not have heard how it ended")
        await federation.change(give_up - federation.now)
        missing -= {client.name for client in federation.population.connected}
    return not missing


def _cut_off(federation: Federation) -> set[str]:
    """Clients of the last round that are away and have not closed their side after hearing the outcome.

    A process that has run no round, since the one before was killed at the very end, does not know who has heard it.
    """
    if not federation.history:
        return set()
    last, population = federation.history[-1].contributions, federation.population
    away = {client.name for client in population if client.state is ClientState.DISCONNECTED}
    knows_who_heard = federation.round is not None
    names = {one.client_name for one in last if one.outcome == Outcome.COMPLETED.value or not knows_who_heard}
    return away & names - federation.heard_the_end
