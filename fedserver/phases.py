"""A round as a list of named phases, each of which can be run and tested alone, and `conclude`, which records it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import structlog

from fedserver.coordinator.effects import TellRoundOutcome
from fedserver.coordinator.population import Client, ClientState, select_cohort
from fedserver.coordinator.round import Round
from fedserver.disk_trouble import durably, outlast_disk_trouble
from fedserver.drawing_up import draw_up
from fedserver.federation import Federation, FederationState, ref_of
from fedserver.intake import Intake
from fedserver.ledger import ledger_entry
from fedserver.records import round_record
from fedserver.store import UploadState, clients, rounds
from fedserver.store.history import record_text
from fedserver.store.ledger import appending, last_hash
from fedserver.store.models import StoredModel
from fedserver.store.uploads import settling
from fedstream.outcomes import Outcome
from fedtask.report import RoundRecord
from fedtask.task import Evaluation, TaskError
from fedtask.worker import WorkerCrashed

log = structlog.get_logger()

_REST_PER_LOOK = 30.0
"""After a look at its round, the driver rests this many times as long as the look took. A look at a thousand
participations takes a millisecond, and each of them gives several reasons for one: nothing else would get its turn."""

_LONGEST_REST_SECONDS = 0.1

_LOOK_SECONDS = 1.0
"""How often the driver looks at its round at least, whether or not anything has changed."""

_STANDSTILL_SECONDS = 3.0
"""A look that comes this much too late means that the whole server stood still, as on a machine that was suspended.
What clients said meanwhile is not read yet."""

_KEEPING_SECONDS = 60.0
"""How often the rows of a round are written if nothing else asks for it. They say how much time each client has left,
so this is the most that a crash can give back."""

_LAST_SCORE_SECONDS = 60.0
"""How long a federation that was told to end at once still waits for the score of its last model."""

_HALF, _PAIR = 0.5, 2
"""With more than half of the aggregate a site outweighs all others together. One of a pair always may."""


class Stopped(Exception):
    """The federation is to end before this round has opened. The message says why."""


@dataclass(slots=True)
class RoundWork:
    """What the phases of one round hand on to each other; each phase fills in its own."""

    number: int
    cohort: list[Client] = field(default_factory=list)
    taken_up: Intake | None = None
    model: StoredModel | None = None
    evaluation: Evaluation | None = None
    evaluation_reason: str = ""

    @property
    def intake(self) -> Intake:
        """What takes the round's updates, once it is open."""
        assert self.taken_up is not None, "this phase comes after `offer`"
        return self.taken_up

    @property
    def opened(self) -> Round:
        """The round, once it is open."""
        return self.intake.round


class RoundPhase(Protocol):
    """A step of a round; its name is what `status` shows."""

    __name__: str

    def __call__(self, federation: Federation, work: RoundWork, /) -> Awaitable[None]: ...


async def select(federation: Federation, work: RoundWork) -> None:
    """Wait until a round can open, and pick its cohort.

    Raises:
        Stopped: the coordinator asked for the end, or too few clients came in time.
    """
    config = federation.config
    give_up = federation.now + config.join_timeout_seconds
    while not federation.stop_requested.is_set():
        missing = config.min_clients - len(federation.idle)
        if federation.disk.trouble is not None:
            await outlast_disk_trouble(federation)
        elif federation.paused:
            federation.stand(FederationState.PAUSED, "paused by the coordinator; `fedserver resume` goes on")
            await federation.change(federation.disk.retry_seconds)
        elif missing > 0:
            federation.stand(FederationState.WAITING, f"for {missing} more client{'s' if missing > 1 else ''}")
            if federation.now >= give_up:
                message = f"{config.min_clients} clients did not join within {config.join_timeout_seconds:.0f} s"
                raise Stopped(message)
            await federation.change(give_up - federation.now)
            continue
        else:
            cohort = select_cohort(federation.idle, config.cohort_size, config.seed, work.number)
            shortage = federation.disk.shortage(len(cohort), federation.model.manifest.size_bytes)
            if not shortage:
                work.cohort = cohort
                return
            federation.stand(FederationState.WAITING, shortage)
            await federation.change(federation.disk.retry_seconds)
        # Neither a pause nor the disk is the clients' doing: from here on they have all their time to join again.
        give_up = federation.now + config.join_timeout_seconds
    raise Stopped("stopped by the coordinator")


async def offer(federation: Federation, work: RoundWork) -> None:
    """Open the round, durably, and make every member of the cohort its offer."""

    is_first_try = True

    async def open_round() -> Round:
        nonlocal is_first_try
        if not is_first_try:  # the disk was waited for: who is here, and what is asked of the server, may have changed
            await select(federation, work)
        is_first_try = False
        round_ = draw_up(federation, work.number, work.cohort)
        await federation.state.journal.write(*rounds.keeping(round_, federation.now))
        return round_

    work.taken_up = federation.take_up(await durably(federation, open_round))
    names = ", ".join(client.name for client in work.cohort)
    federation.stand(FederationState.RUNNING, f"round {work.number}: offered to {names}")
    for client in work.cohort:
        if client.state is ClientState.LEFT:  # while the disk took the round, which nobody knew of yet
            federation.apply(work.opened.leave(client.name, client.reason, federation.now))
    federation.sessions.say(work.opened.offer_of(part) for part in work.opened.participations if part.is_outstanding)


async def collect(federation: Federation, work: RoundWork) -> None:
    """Let the clients work until the round closes."""
    round_, kept_at, looked_at = work.opened, federation.now, time.monotonic()
    while round_.closed is None:  # a round that an earlier process left may be closed already
        _make_up_for_standstill(federation, round_, looked_at)
        began = federation.now
        if federation.disk.trouble is not None:
            await outlast_disk_trouble(federation)
        expired = round_.tick(federation.now)
        num_unfit = _num_unfit(work)
        reason = _why_closing(federation, round_, num_unfit)
        if reason is not None:
            cancelled = round_.close(reason, federation.now)
            await _keep(federation, round_)
            federation.sessions.say([*expired, *cancelled])
            return
        if expired or federation.now - kept_at >= _KEEPING_SECONDS:
            await _keep(federation, round_)
            kept_at = federation.now
        federation.sessions.say(expired)
        federation.stand(FederationState.RUNNING, waiting_for(round_, num_unfit))
        next_event = min(round_.next_event(), kept_at + _KEEPING_SECONDS)
        looked_at = time.monotonic()  # not before the writes above: a slow disk is no standstill
        await asyncio.sleep(min(_REST_PER_LOOK * (federation.now - began), _LONGEST_REST_SECONDS))
        await federation.change(min(next_event - federation.now, _LOOK_SECONDS))


def _make_up_for_standstill(federation: Federation, round_: Round, looked_at: float) -> None:
    """Give everybody the time back in which this process did not run, by the machine's own clock."""
    lost = time.monotonic() - looked_at
    if lost > _LOOK_SECONDS + _STANDSTILL_SECONDS:
        log.warning("the server stood still; every client has as much more time", seconds=round(lost, 1))
        round_.resume(lost, federation.now)


async def _keep(federation: Federation, round_: Round) -> None:
    """Make the round durable as it is now, however long the disk takes."""

    async def write() -> None:
        await federation.state.journal.write(*rounds.keeping(round_, federation.now))

    await durably(federation, write)


def _num_unfit(work: RoundWork) -> int:
    """How many updates would not count if the round closed now; worked out only where enough are in to close it."""
    completed = {part.rank for part in work.opened.completed}
    return len(work.intake.unfit(completed)) if len(completed) >= work.opened.rules.reporting_goal else 0


def _why_closing(federation: Federation, round_: Round, num_unfit: int) -> str | None:
    if federation.stop_now.is_set() and not round_.is_verifying:
        return "stopped by the coordinator"
    return round_.why_closing(num_unfit)


def waiting_for(round_: Round, num_unfit: int) -> str:
    """What a round waits for, for people."""
    counts = round_.counts
    shown = names_of([part.client for part in round_.participations if part.is_outstanding])
    apart = f" ({num_unfit} of them too far from the others to count)" if num_unfit else ""
    done = f"{counts[Outcome.COMPLETED]} of {counts.offered} updates in{apart}"
    return f"round {round_.number}: {done}, waiting for {shown}"


def names_of(names: Sequence[str]) -> str:
    """The first few of them, and how many more, for people."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


async def aggregate(federation: Federation, work: RoundWork) -> None:
    """Screen the updates against each other and fix each one's share."""
    round_ = work.opened
    completed = {part.rank for part in round_.completed}
    for rank, reason in (await work.intake.screen(completed)).items():
        log.warning("quarantined", client=round_.participations[rank].client, reason=reason)
        part = round_.participations[rank]
        # Not kept before the round's record is: a screening that a crash ends must begin anew with all updates.
        round_.quarantine(part.upload_id, reason, federation.now)
    shares = work.intake.shares()
    for rank, share in shares.items():
        round_.participations[rank].weight = share
        if share > _HALF and len(shares) > _PAIR:
            client, hint = round_.participations[rank].client, "if that cannot be, revoke it, or set max_examples"
            log.warning("one site outweighs all others together", client=client, share=round(share, 3), hint=hint)


async def publish(federation: Federation, work: RoundWork) -> None:
    """Make the new global model, store it, and let it be the current one. The sums are of no use after it."""
    if not work.opened.succeeded:
        await work.intake.release()
        return
    federation.stand(FederationState.RUNNING, f"round {work.number}: making the new global model")
    work.model = await durably(federation, partial(work.intake.publish, federation.state.models, work.number))
    await work.intake.release()
    federation.model = work.model
    for part in work.opened.completed:
        federation.population.credit(part.client)
    log.info("published", round=work.number, model=str(work.model.digest))


async def evaluate(federation: Federation, work: RoundWork) -> None:
    """Score the new global model on the holdout. A failing evaluation costs its score, never the round."""
    if work.model is None:
        work.evaluation_reason = "the round made no model"
        return
    federation.stand(FederationState.RUNNING, f"round {work.number}: evaluating the global model on the holdout")
    try:
        work.evaluation = await _unless_stopped(federation, federation.evaluator.evaluate(work.model.path))
    except (TaskError, WorkerCrashed) as error:
        log.error("evaluation failed", round=work.number, error=str(error))
        work.evaluation_reason = f"evaluation failed: {error}"
        return
    if work.evaluation is None:
        work.evaluation_reason = "the server has no holdout"
        return
    federation.scoreboard.record(ref_of(work.model), work.evaluation.metrics)
    log.info("evaluated", round=work.number, **_headline(work.evaluation))


async def _unless_stopped(federation: Federation, scoring: Coroutine[Any, Any, Evaluation | None]) -> Evaluation | None:
    """What scoring gives; where the federation is to end at once, it has a while, and then its worker is ended."""
    task, stopping = asyncio.create_task(scoring), asyncio.create_task(federation.stop_now.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await asyncio.wait({task}, timeout=_LAST_SCORE_SECONDS)
            if not task.done():
                log.warning("the evaluation does not end; its process is ended", seconds=_LAST_SCORE_SECONDS)
                await federation.evaluator.close()
        return await task
    finally:
        stopping.cancel()
        task.cancel()


def _headline(evaluation: Evaluation) -> dict[str, float]:
    shown = ("loss", "accuracy", "auc", "sensitivity", "specificity")
    return {name: round(value, 4) for name in shown if (value := evaluation.metrics.get(name)) is not None}


PHASES: Sequence[RoundPhase] = (select, offer, collect, aggregate, publish, evaluate)


async def run_round(federation: Federation, number: int, revived: Intake | None = None) -> RoundWork:
    """Run one round through all phases, keep its record, and tell every client how it ended.

    A round that an earlier process left at work is `revived`: it has been offered, and goes on with `collect`.

    Raises:
        Stopped: from `select`; the round has not opened.
    """
    work = RoundWork(number, taken_up=revived)
    phases = PHASES if revived is None else PHASES[PHASES.index(collect) :]
    with structlog.contextvars.bound_contextvars(round=number):
        for phase in phases:
            federation.phase = phase.__name__
            log.debug("phase", name=phase.__name__)
            await phase(federation, work)
        log.debug("phase", name="conclude")
        await conclude(federation, work)
    return work


async def conclude(federation: Federation, work: RoundWork) -> None:
    """Keep the round's record and its entry in the ledger, in one step, and tell everyone how it ended."""
    round_ = work.opened
    record = round_record(federation, round_, federation.traffic.take(), work.evaluation, work.evaluation_reason)
    sha256 = work.model.digest.sha256 if work.model is not None else None
    text = record_text(record)
    entry = appending(ledger_entry(federation, work.intake, work.model, record, text))
    set_aside = [
        settling(part.upload_id, UploadState.QUARANTINED, part.reason)
        for part in round_.participations
        if part.outcome is Outcome.QUARANTINED
    ]
    # Of a client that stays connected, this is what says later when it was last seen.
    seen = [clients.keeping(client) for client in federation.population.connected]
    worked = federation.working_time.keeping(federation.now)
    statements = [*set_aside, *rounds.concluding(text, record.number, sha256), entry, *seen, worked]
    await durably(federation, partial(federation.state.journal.write, *statements))
    federation.history.append(record)
    federation.pace.note(record)
    outcomes = [_outcome_for(federation, work, record, client) for client in federation.sessions.clients]
    federation.sessions.say(outcomes)
    log.info("round over", succeeded=record.succeeded, reason=record.reason, **record.counts)
    log.info("ledger", hash=last_hash(federation.state.database))


def _outcome_for(federation: Federation, work: RoundWork, record: RoundRecord, client: str) -> TellRoundOutcome:
    round_, part = work.opened, work.opened.of_client(client)
    return TellRoundOutcome(
        client=client,
        round_number=round_.number,
        succeeded=record.succeeded,
        reason=record.reason,
        outcome=part.outcome if part is not None else None,
        outcome_reason=part.reason if part is not None else "",
        global_model=ref_of(federation.model),
        metrics=work.evaluation.metrics if work.evaluation is not None else {},
    )
