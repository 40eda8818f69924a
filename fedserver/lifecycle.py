"""A federation's life: prepare the model, run the rounds, make the outcome."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from fedserver.config import folder_of
from fedserver.coordinator.effects import TellFederationOutcome
from fedserver.coordinator.participation import Outcome
from fedserver.coordinator.population import ClientState
from fedserver.coordinator.round import Round
from fedserver.desk import Desk
from fedserver.federation import Federation, FederationState, ref_of
from fedserver.overlap import overlap
from fedserver.phases import Stopped, names_of, run_round
from fedserver.records import describe_file, federation_record
from fedserver.sessions import LONGEST_FAREWELL_SECONDS
from fedserver.store import StateError
from fedserver.store.errors import BackupAtWork
from fedserver.store.models import StoredModel
from fedserver.store.retention import SCRATCH_MODEL
from fedserver.store.rounds import received_bytes, unfinished
from fedserver.store.state import KEEP_ROUNDS_FACT, MEANING_FACT, SOURCES_FACT, TASK_FACT
from fedstream.errors import FedstreamError, UnknownModel
from fedstream.manifest import described
from fedstream.schema import TaskMeaning
from fedstream.weights_file import WeightsFile
from fedtask.registry import model_stem
from fedtask.report import FederationRecord, ModelFile
from fedtask.task import Evaluation, TaskError
from fedtask.worker import WorkerCrashed

log = structlog.get_logger()

_LONGEST_RETRY_SECONDS = 300.0
"""To which the delay after rounds that fail one after the other grows, unless it is longer from the start."""

_LISTING_SECONDS = 1.0
_COMING_BACK_SECONDS = 40.0
"""Clients wait for at most 30 s and jitter between two tries to reach a server."""


class FederationFailed(FedstreamError):
    """The federation could not go on. The message says why and what to do."""


async def prepare(federation: Federation) -> None:
    """Learn the task's schema, and make or find the global model to go on from.

    Raises:
        FederationFailed: the task, its initial model or the holdout cannot be had.
        StateError, DamagedFile: what is stored is not what it was.
    """
    state = federation.state
    try:
        for path in await asyncio.to_thread(state.sweep):
            log.info("removed what an interrupted step left", file=str(path))
        if state.database.interrupted:
            log.warning("going on from the commit before", because=state.database.interrupted)
        _require_rounds_left(federation)
        federation.description = await federation.evaluator.describe()
        federation.schema = federation.description.schema
        await asyncio.to_thread(_require_same_meaning, federation)
        # Before a model is made, which stays: a folder that is missing is mended by its name, and no trace is left.
        await federation.evaluator.open()
        _require_test_set(federation.config.test)
        if shared := await asyncio.to_thread(overlap, federation.config):
            log.warning("test set", warning=shared)
        federation.model = await _model_to_go_on_from(federation)
        await asyncio.to_thread(_remember_settings, federation)
        await federation.evaluator.rest()
        # Last, so that a first try which failed for want of a folder is not the federation's first start.
        federation.working_time = await asyncio.to_thread(federation.working_time.going_on, state)
    except (TaskError, WorkerCrashed) as error:
        raise FederationFailed(str(error)) from error
    federation.ready.set()
    log.info("ready", model=str(federation.model.digest), tensors=len(federation.schema))


def _require_rounds_left(federation: Federation) -> None:
    """See that a start with fewer rounds than there were, as one that forgot to say how many, ends nothing by it."""
    done, wanted = federation.history[-1].number if federation.history else 0, federation.config.rounds
    left = unfinished(federation.state.database)
    begun = max(done, left.row.number if left is not None else 0)
    if begun > wanted:
        begun_or_over = f"{begun} rounds are over" if begun == done else f"round {begun} has begun"
        raise FederationFailed(
            f"{begun_or_over} in {federation.state.folder}, and --rounds is {wanted} in all: every site would "
            "hear the end at once. Give --rounds as before, or more"
        )


def _require_same_meaning(federation: Federation) -> None:
    """See that the model there is goes on to mean what it did: the tensors of swapped classes are the same."""
    then, now = federation.state.fact(MEANING_FACT), _in_words(federation.meaning)
    if then is not None and then != now:
        raise FederationFailed(
            f"the federation in {federation.state.folder} was begun with {then}; with these settings it would be "
            f"{now}. Give the task's settings as they were, or another --state"
        )


def _in_words(meaning: TaskMeaning) -> str:
    classes = ", ".join(meaning.class_names) or "no classes"
    return f"classes {classes} ({meaning.positive_class} positive), inputs {meaning.preprocessing}"


def _remember_settings(federation: Federation) -> None:
    """Keep what commands without a server go by. Not before all is well: what is refused changes nothing."""
    state, config = federation.state, federation.config
    state.remember(KEEP_ROUNDS_FACT, str(config.keep_rounds))
    state.remember(TASK_FACT, json.dumps([config.task, config.task_settings]))
    state.remember(MEANING_FACT, _in_words(federation.meaning))


def _recall(federation: Federation) -> int:
    """Learn from the rounds that are over who has given what, and what scored how; then, who the clients were.

    In this order, since whoever is in a model is not forgotten.

    Returns:
        The version of the last model that a round has made; 0 for none. One of a round still at work is made again.
    """
    last = 0
    for record in federation.history:
        for one in record.contributions:
            if one.outcome == Outcome.COMPLETED.value:
                federation.population.credit(one.client_name)
        if record.evaluation is not None:
            ref = ref_of(federation.state.models.of_version(record.number))
            federation.progress.record(ref, record.evaluation.metrics)
        last = record.number if record.succeeded else last
    federation.register.recall()
    return last


def _require_test_set(test: str | None) -> None:
    """Look whether the test set is there, not what is in it: to miss it only after the last round would be late."""
    folder = folder_of(test)
    if folder is not None and not folder.is_dir():
        raise FederationFailed(f"--test {folder} is no folder; it is looked at once, at the end, but must be there now")


def _model_of(federation: Federation, version: int) -> StoredModel | None:
    try:
        return federation.state.models.of_version(version)
    except UnknownModel:
        return None


async def _model_to_go_on_from(federation: Federation) -> StoredModel:
    stored = _model_of(federation, _recall(federation))
    if stored is None:
        return await _initial_model(federation)
    await asyncio.to_thread(stored.check)
    assert federation.schema is not None, "the schema is learned before the model is looked at"
    expected = [(spec.name, spec.dtype, spec.shape) for spec in federation.schema]
    if [(entry.name, entry.dtype, entry.shape) for entry in stored.manifest] != expected:
        raise FederationFailed(
            f"the state directory {federation.state.folder} holds another model than this task's; "
            "give another --state, or the settings it was begun with"
        )
    _compare_sources(federation, stored)
    return stored


def _compare_sources(federation: Federation, stored: StoredModel) -> None:
    """See that nobody takes the model there is for one that was made as the options say.

    After the first round there is no way back, and the options may as well be left out.
    """
    begun, given = federation.state.fact(SOURCES_FACT), _sources(federation)
    known = json.loads(begun) if begun is not None else given
    differing = [option for option, value in given.items() if value is not None and value != known[option]]
    if not differing:
        return
    words = f"the first model in {federation.state.folder} was not made with this {' and '.join(differing)}"
    if stored.version == 0:
        raise FederationFailed(f"{words}; give another --state to begin anew, or leave that off")
    log.warning("going on from the last model all the same", because=words)


def _sources(federation: Federation) -> dict[str, str | None]:
    given = {
        "--backbone-weights": federation.config.backbone_weights,
        "--initial-model": federation.config.initial_model,
    }
    return {option: _whole(value) if value is not None else None for option, value in given.items()}


def _whole(source: str | Path) -> str:
    """A file by its whole path, however it was named; a word such as `random` as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else str(source)


async def _initial_model(federation: Federation) -> StoredModel:
    config, state = federation.config, federation.state
    scratch = state.folder / SCRATCH_MODEL
    await federation.evaluator.initial_model(config.seed, config.backbone_weights, config.initial_model, scratch)
    assert federation.schema is not None, "the schema is learned before the model is made"
    try:
        tensors = described(federation.schema, WeightsFile(scratch).on_demand())
        await asyncio.to_thread(state.remember, SOURCES_FACT, json.dumps(_sources(federation)))
        return await asyncio.to_thread(state.models.add, 0, federation.schema, tensors)
    finally:
        scratch.unlink()


async def run_rounds(federation: Federation, desk: Desk) -> str:
    """Run rounds until all are done or something ends the federation; returns why it ended."""
    number, failures = federation.history[-1].number + 1 if federation.history else 1, 0
    revived = await revive(federation, desk)
    if revived is None and (stopping := federation.progress.why_stopping()) is not None:
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
        stopping = federation.progress.why_stopping()
        if stopping is not None:
            return stopping
        failures = 0 if work.model is not None else failures + 1
        if failures and number < federation.config.rounds:
            await federation.rest(_retry_delay(federation.config.retry_delay_seconds, failures))
        number += 1
    return f"all {federation.config.rounds} rounds done"


def _retry_delay(seconds: float, failures: int) -> float:
    """Doubled with each further failure: what fails at once, as at a site without its disk, would use up all rounds."""
    return min(seconds * 2.0 ** min(failures - 1, 30), max(seconds, _LONGEST_RETRY_SECONDS))


def is_over(federation: Federation) -> bool:
    """Whether a server that is started again, with the same settings, would have no round to run."""
    history = federation.history
    all_done = bool(history) and history[-1].number >= federation.config.rounds
    return all_done or federation.progress.why_stopping() is not None


async def revive(federation: Federation, desk: Desk) -> Round | None:
    """Take up the round that an earlier process left at work, with its uploads and what was in.

    Raises:
        StateError: it started from another model than the last one there is.
    """
    if federation.history:
        desk.remember(federation.history[-1].number)
    left = unfinished(federation.state.database)
    if left is None or federation.model is None:
        desk.open()
        return None
    if left.row.base_sha256_hex != federation.model.digest.hex:
        message = (
            f"round {left.row.number} started from model {left.row.base_sha256_hex[:12]}, but the last one stored is"
        )
        raise StateError(f"{message} {federation.model.digest}; restore a backup (`fedserver restore`)")
    round_ = federation.take_up(left.revive(ref_of(federation.model), federation.now))
    # Before an update that is damaged is asked for again: it was received all the same.
    federation.traffic.received = received_bytes(federation.state.database, round_.number)
    await desk.restore()
    desk.open()
    log.info("going on", round=round_.number, updates_in=len(round_.completed))
    for part in round_.participations:
        if part.is_outstanding:
            federation.sessions.say([round_.offer_of(part)])  # it may have connected while the round was being read
    return round_


async def collect_garbage(federation: Federation) -> None:
    """Throw away what falls out of the retention. Where the disk refuses, it is left for the next time."""
    state, best = federation.state, federation.progress.best
    try:
        expired = await asyncio.to_thread(state.collect, federation.config.keep_rounds, best.version if best else 0)
    except BackupAtWork as error:
        log.info("nothing is collected now", because=str(error))
        return
    except (OSError, sqlite3.Error) as error:
        if federation.disk.note(error) is None:
            raise
        return
    if expired.rounds or expired.models:
        log.debug("collected", rounds=expired.rounds, models=len(expired.models))


@dataclass(frozen=True, slots=True)
class Made:
    """What there is of a federation that is over.

    The folders of report and models, `None` of what was not made; whether the score on the test set is there, if one
    was asked for; and whether any round has made a model, unless the coordinator stopped it before.
    """

    report: Path | None = None
    models: Path | None = None
    test: bool = False
    rounds: bool = False

    @property
    def missing(self) -> list[str]:
        """What was not made, or not whole."""
        made = {
            "report": self.report is not None,
            "models": self.models is not None,
            "score on the test set": self.test,
            "a model of any round": self.rounds,
        }
        return [name for name, there in made.items() if not there]


async def finish(federation: Federation, reason: str) -> Made:
    """Test, export and report. What cannot be made is said, and the rest is made."""
    federation.stand(FederationState.FINISHING, "models and report are being made")
    best, last = _best_model(federation), federation.model
    assert last is not None, "a federation is finished after it was prepared"
    assert best is not None, "the initial model is the best there is before any round"
    test = await _test(federation, best)
    test_summary = federation.evaluator.test_summary
    if test_summary is not None and (shared := await asyncio.to_thread(overlap, federation.config)):
        test_summary = replace(test_summary, weaknesses=[*test_summary.weaknesses, shared])
    folder = federation.config.out / "models"
    files, whole = await _export(federation, best, last, folder)
    record = federation_record(federation, reason, test, test_summary, files)
    report = await _report(federation, record)
    return Made(
        report,
        folder if whole else None,
        test=test is not None or federation.config.test is None,
        rounds=last.version > 0 or federation.stop_requested.is_set(),
    )


async def _report(federation: Federation, record: FederationRecord) -> Path | None:
    """Make the report, without pictures if it cannot be had with them; returns its folder, `None` if there is none."""
    folder = federation.config.out / "report"
    if federation.config.pictures:
        if await _render(federation, record, folder, pictures=True):
            return folder
        log.warning("trying to make the report without pictures")
    return folder if await _render(federation, record, folder, pictures=False) else None


async def _render(federation: Federation, record: FederationRecord, folder: Path, *, pictures: bool) -> bool:
    try:
        await federation.evaluator.render_report(record, folder, pictures=pictures)
    except (TaskError, WorkerCrashed) as error:
        log.error("the report could not be made", pictures=pictures, error=str(error))
        return False
    return True


def _best_model(federation: Federation) -> StoredModel | None:
    best = federation.progress.best
    return federation.state.models.get(best.digest.sha256) if best is not None else federation.model


async def _test(federation: Federation, best: StoredModel) -> Evaluation | None:
    if federation.config.test is None:
        return None
    try:
        return await federation.evaluator.test(federation.config.test, best.path)
    except (TaskError, WorkerCrashed) as error:
        log.error("the test set could not be used", error=str(error))
        return None


async def _export(
    federation: Federation, best: StoredModel, last: StoredModel, folder: Path
) -> tuple[list[ModelFile], bool]:
    """Write both models to `folder`; returns what was written, and whether that is all."""
    stem = model_stem(federation.config.task)
    files: list[ModelFile] = []
    try:
        for model, name, words in ((best, stem, "best"), (last, f"{stem}_last", "last")):
            written = await federation.evaluator.export(model.path, folder, name)
            what = f"{words} global model, of round {model.version}" if model.version else "initial model"
            files += [await asyncio.to_thread(describe_file, path, what) for path in written]
    except (TaskError, WorkerCrashed, OSError) as error:
        log.error("the models could not be exported", error=str(error))
        return files, False
    return files, True


async def say_farewell(federation: Federation, reason: str) -> None:
    """Tell every client how the federation ended, and wait for them to hear it."""
    best, last = _best_model(federation), federation.model
    if best is None or last is None:
        return
    log.debug("phase", name="farewell")
    was_stopped = federation.stop_requested.is_set()
    outcome = TellFederationOutcome("", reason, ref_of(last), ref_of(best), federation.metrics_of_best())
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
    stopped = asyncio.create_task(federation.stop_requested.wait() if heeds else asyncio.Event().wait())
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


async def keep_working_time(federation: Federation) -> None:
    """Keep how long servers have run by now, for one that is started again. Where the disk refuses, it is let be."""
    try:
        await federation.state.journal.write(federation.working_time.keeping(federation.now))
    except (OSError, sqlite3.Error) as error:
        if federation.disk.note(error) is None:
            raise


async def _let_come_back(federation: Federation) -> bool:
    """Give the clients of the last round time to come back, if they were cut off at the very end, or killed.

    Whoever connects now is told at once. Returns whether all have come.
    """
    missing, give_up = _cut_off(federation), federation.now + _COMING_BACK_SECONDS
    while missing and federation.now < give_up and not federation.stop_requested.is_set():
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
    if federation.round is None:
        names = {one.client_name for one in last}
        away |= {name for name in names if not population.has_met(name)}
    else:
        names = {one.client_name for one in last if one.outcome == Outcome.COMPLETED.value}
    return away & names - federation.heard_the_end
