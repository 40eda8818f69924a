"""One federation: what the services and the round driver share, and its life from preparation to outcome."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, replace

import structlog

from fedserver.aggregation import strategy_named
from fedserver.clock import Clock
from fedserver.config import ServerConfig
from fedserver.coordinator.effects import Effect, TellFederationOutcome, TellWaiting
from fedserver.coordinator.participation import Participation, Stage
from fedserver.coordinator.population import Client, ClientState, Introduction
from fedserver.coordinator.round import Round
from fedserver.coordinator.scoreboard import Scoreboard
from fedserver.disk import DiskWatch
from fedserver.evaluation import Evaluator
from fedserver.handshake import Decline
from fedserver.intake import Intake
from fedserver.notices import Notices
from fedserver.pace import Pace
from fedserver.register import Register
from fedserver.sessions import Sessions
from fedserver.store import State, rounds
from fedserver.store.facts import PAUSED, PAUSED_FACT
from fedserver.store.history import History
from fedserver.store.models import StoredModel
from fedserver.traffic import Traffic
from fedserver.working_time import WorkingTime
from fedstream.encodings import Encoding
from fedstream.errors import FedstreamError, WrongState
from fedstream.manifest import ModelRef
from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning
from fedstream.waiting import comes
from fedtask.messages import TaskDescription

log = structlog.get_logger()


class FederationFailed(FedstreamError):
    """The federation could not go on. The message says why and what to do."""


class FederationState(enum.Enum):
    """What a federation does. Legal transitions:

    PREPARING -> WAITING | RUNNING | PAUSED, and back from WAITING where it waited for the disk
    WAITING, RUNNING and PAUSED -> one another, as rounds begin and end and the coordinator pauses and resumes
    any of these -> FINISHING -> FINISHED
    any but FINISHED -> FAILED
    """

    PREPARING = "preparing"
    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHING = "finishing"
    FINISHED = "finished"
    FAILED = "failed"


_IDLE = (FederationState.PREPARING, FederationState.WAITING, FederationState.PAUSED)
"""States in which clients have nothing to do, and are told what is waited for."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a federation does, what it waits for or why it ended, and since when (steady clock, seconds)."""

    state: FederationState
    reason: str
    since: float


class Federation:
    """The shared state. Used from the event loop only.

    Args:
        config: what the coordinator set.
        state: the state directory.
        evaluator: the worker that builds, evaluates and exports.
        clock: for all rules that depend on time.
        disk: watches over the disk of the state directory; by default as the configuration says.
    """

    def __init__(
        self, config: ServerConfig, state: State, evaluator: Evaluator, clock: Clock, disk: DiskWatch | None = None
    ) -> None:
        self.config = config
        self.state = state
        self.evaluator = evaluator
        self.clock = clock
        self.disk = disk or DiskWatch(state, config.min_free_bytes, config.retry_delay_seconds)
        self.strategy = strategy_named(config.strategy)
        self.sessions = Sessions()
        self.register = Register(state, self.disk, self.touch)
        self.population = self.register.population
        self.scoreboard = Scoreboard(config.early_stopping_rounds)
        self.best_elsewhere: set[int] = set()
        """Versions of the models that were the best on other holdouts than this one, each of which may come back."""
        self.standing = Standing(FederationState.PREPARING, "the initial model is being made", clock.monotonic())
        self.started = clock.wall()
        self.working_time = WorkingTime.of_new_process(clock)
        self.description: TaskDescription | None = None
        """What preparation has learned of the task; `None` before."""
        self._model: StoredModel | None = None
        self.intake: Intake | None = None
        """The round at work, or the last one, with its updates; `None` before the first."""
        self.phase = "select"
        self.history, self.pace = History(state.database), Pace()
        self.holdout_id = ""
        """What tells the holdout from another; known with the task, empty if there is none."""
        self.traffic = Traffic()
        self.outcome: TellFederationOutcome | None = None
        self.heard_the_end: set[str] = set()
        """Clients that have closed their side after it, which they do when they have the final model."""
        self.has_caught_up = False
        """What an earlier process left at work is at work again. Before, nothing can be said of offers."""
        self.is_leaving = False
        """Nobody is let in any more: the server is about to close."""
        self.ready = asyncio.Event()
        self.stop_requested = asyncio.Event()
        """The federation is to end, at the latest after the round at work."""
        self.stop_now = asyncio.Event()
        """It is to end without waiting for the round at work."""
        self.paused = state.fact(PAUSED_FACT) == PAUSED  # most pauses are for a start like this one
        self._changed = asyncio.Event()
        self._notices = Notices(self._tell_what_is_waited_for)

    # What everyone may ask.

    @property
    def now(self) -> float:
        """The steady clock."""
        return self.clock.monotonic()

    @property
    def task(self) -> TaskDescription:
        """What is learned; known once `ready` is set."""
        assert self.description is not None, "asked before the federation is ready"
        return self.description

    @property
    def schema(self) -> ModelSchema:
        """The model's tensors; known once `ready` is set."""
        return self.task.schema

    @property
    def meaning(self) -> TaskMeaning:
        """What the task's classes and inputs mean; known once `ready` is set."""
        return self.task.meaning

    @property
    def model(self) -> StoredModel:
        """The current global model; there once `ready` is set."""
        assert self._model is not None, "asked before the federation is ready"
        return self._model

    @model.setter
    def model(self, model: StoredModel) -> None:
        self._model = model

    @property
    def model_ref(self) -> ModelRef | None:
        """The name of the current global model; `None` before there is one."""
        return ref_of(self._model) if self._model is not None else None

    @property
    def best_model(self) -> StoredModel:
        """The best global model so far; the current one where none has been scored."""
        best = self.scoreboard.best
        return self.state.models.get(best.digest.sha256) if best is not None else self.model

    @property
    def plan(self) -> Plan:
        """What clients are offered, before their own seeds: the task's default with the coordinator's settings."""
        given = self.config.plan.model_dump(exclude_none=True)
        return replace(self.task.default_plan, **given)

    @property
    def round(self) -> Round | None:
        """The round at work, or the last one; `None` before the first."""
        return self.intake.round if self.intake is not None else None

    @property
    def round_at_work(self) -> Round | None:
        """The round at work, until its record is kept."""
        over = self.round is None or (bool(self.history) and self.history[-1].number >= self.round.number)
        return None if over else self.round

    @property
    def ending(self) -> asyncio.Event:
        """Set once nothing is to be waited for any more; a stop may leave a round at work its time to end."""
        return self.stop_requested if self.round_at_work is None else self.stop_now

    @property
    def idle(self) -> list[Client]:
        """Clients that can be given an offer."""
        return [client for client in self.population.connected if client.name in self.sessions]

    # What changes.

    def stand(self, state: FederationState, reason: str) -> None:
        """Take note of what the federation does now and what it waits for; idle clients are told."""
        before = self.standing
        if (before.state, before.reason) == (state, reason):
            return
        self.standing = Standing(state, reason, self.clock.monotonic())
        (log.error if state is FederationState.FAILED else log.info)(state.value, reason=reason)
        if state is not before.state:
            self._notices.state_changed()
        else:
            self._notices.reason_changed()

    def _tell_what_is_waited_for(self) -> None:
        if self.standing.state in _IDLE:
            self.sessions.say(self.waiting_notice(client) for client in self.sessions.clients)

    def waiting_notice(self, client: str) -> Effect:
        """What the server waits for, for one client."""
        return TellWaiting(client, self.standing.reason, self.standing.since)

    def touch(self) -> None:
        """Wake whoever waits for something to change."""
        self._changed.set()

    async def change(self, timeout_seconds: float) -> None:
        """Return when something has changed, or the time is up."""
        await comes(self._changed, timeout_seconds)
        self._changed.clear()

    async def rest(self, seconds: float) -> None:
        """Return when the time is up, whatever changes meanwhile, or at once when the federation is ending."""
        await comes(self.ending, seconds)

    def apply(self, effects: list[Effect]) -> None:
        """Say what a state machine wants said, and wake the driver."""
        self.sessions.say(effects)
        self.touch()

    # Clients come and go.

    def welcome(self, introduction: Introduction) -> list[Effect]:
        """A client is in; returns what it must hear at once."""
        client = self.population.connect(introduction, self.clock.wall())
        log.info("client connected", client=client.name, examples=introduction.num_examples)
        self.touch()
        if self.outcome is not None:
            return [replace(self.outcome, client=client.name)]
        if (round_ := self.round) is not None and (part := round_.of_client(client.name)) and part.is_outstanding:
            return [round_.offer_of(part)]
        return [self.waiting_notice(client.name)]

    def turn_away(self, introduction: Introduction, decline: Decline) -> None:
        """A client was declined at the handshake."""
        log.warning("client declined", client=introduction.name, reason=decline.message)
        self.population.decline(introduction, decline.message, self.clock.wall())

    def gone(self, client: str, state: ClientState, reason: str) -> None:
        """A client's stream ended. What it has agreed to stands until its lease runs out, unless it left."""
        log.info("client gone", client=client, state=state.value, reason=reason)
        self.population.disconnect(client, state, reason)
        if state is ClientState.LEFT and self.round is not None:
            self.apply(self.round.leave(client, reason, self.clock.monotonic()))
        self.touch()

    def expel(self, client: str, reason: str) -> None:
        """A client is a member no more. What it had promised and not sent counts as failed; its calls end elsewhere."""
        if client in self.population:
            self.population.disconnect(client, ClientState.LEFT, reason)
        if self.round is not None:
            self.apply(self.round.leave(client, reason, self.clock.monotonic()))
        self.touch()

    # Administration.

    def pause(self) -> None:
        """Open no further round until `resume`."""
        self._require_going()
        self.paused = True
        self.touch()

    def resume(self) -> None:
        """Take a pause back."""
        self._require_going()
        self.paused = False
        self.touch()

    def stop(self, *, finish_round: bool) -> None:
        """End the federation, after the round at work or at once."""
        self.stop_requested.set()
        if not finish_round:
            self.stop_now.set()
        self.touch()

    def _require_going(self) -> None:
        if self.standing.state in (FederationState.FINISHING, FederationState.FINISHED, FederationState.FAILED):
            name = self.standing.state.value
            raise WrongState(f"the federation is {name}: {self.standing.reason}", state=name)

    # Rounds.

    @property
    def update_encodings(self) -> list[Encoding]:
        """What clients are told that updates may travel in, best first."""
        return list(dict.fromkeys((self.config.update_encoding, Encoding.RAW)))

    @property
    def encodings_taken(self) -> list[Encoding]:
        """What is taken: those, and what the settings said with which an earlier process opened the round at work."""
        if self.round is None:
            return self.update_encodings
        return list(dict.fromkeys((*self.update_encodings, self.round.rules.update_encoding)))

    def take_up(self, round_: Round) -> Intake:
        """Make a round, new or of an earlier process, the one at work.

        Raises:
            DamagedFile: its base model cannot be used.
        """
        self.intake = Intake(self.schema, self.model, self.strategy, round_)
        return self.intake

    async def keep(self, round_: Round, part: Participation) -> None:
        """Make the state of one client's part durable, before anyone is told of it.

        Nothing that a client says changes a part whose update is being checked; the end of the check is kept by itself.
        """
        if part.stage is Stage.FINISHING:
            return
        await self.state.journal.write(rounds.keeping_part(round_, part, self.now))


def ref_of(model: StoredModel) -> ModelRef:
    """The name of a stored model."""
    return ModelRef(model.version, model.digest)
