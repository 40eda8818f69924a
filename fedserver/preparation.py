"""Preparation: see that the settings go with what is stored, learn the task, and find the model to go on from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import structlog

from fedserver.config import folder_of
from fedserver.disk_trouble import durably
from fedserver.federation import Federation, FederationFailed, ref_of
from fedserver.holdout import holdout_id
from fedserver.overlap import overlap
from fedserver.starting_model import model_to_go_on_from
from fedserver.store.facts import KEEP_ROUNDS_FACT, MEANING_FACT, TASK_FACT
from fedserver.store.rounds import unfinished
from fedserver.store.scores import best_versions, comparable
from fedstream.outcomes import Outcome
from fedstream.schema import TaskMeaning
from fedtask.report import RoundRecord
from fedtask.task import TaskError
from fedtask.worker import WorkerCrashed

log = structlog.get_logger()


async def prepare(federation: Federation) -> None:
    """Learn the task's schema, and make or find the global model to go on from.

    Raises:
        FederationFailed: the task, its initial model or the holdout cannot be had.
        StateError, DamagedFile: what is stored is not what it was.
    """
    state = federation.state
    if federation.paused:
        log.warning("it was paused before, and still is", hint="`fedserver resume` goes on")
    try:
        for path in await asyncio.to_thread(state.sweep):
            log.info("removed what an interrupted step left", file=str(path))
        if state.database.interrupted:
            log.warning("going on from the commit before", because=state.database.interrupted)
        _require_rounds_left(federation)
        federation.description = await federation.evaluator.describe()
        await asyncio.to_thread(_require_same_meaning, federation)
        # Before a model is made, which stays: a folder that is missing is mended by its name, and no trace is left.
        await federation.evaluator.open()
        federation.holdout_id = await asyncio.to_thread(holdout_id, federation.config)
        _require_test_set(federation.config.test)
        if shared := await asyncio.to_thread(overlap, federation.config):
            log.warning("test set", warning=shared)
        federation.model = await model_to_go_on_from(federation, _recall(federation))
        await durably(federation, lambda: asyncio.to_thread(_remember_settings, federation))
        await federation.evaluator.rest()
        # Last, so that a first try which failed for want of a folder is not the federation's first start.
        going_on = partial(federation.working_time.going_on, state)
        federation.working_time = await durably(federation, lambda: asyncio.to_thread(going_on))
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


def _require_test_set(test: str | None) -> None:
    """Look whether the test set is there, not what is in it: to miss it only after the last round would be late."""
    folder = folder_of(test)
    if folder is not None and not folder.is_dir():
        raise FederationFailed(f"--test {folder} is no folder; it is looked at once, at the end, but must be there now")


def _remember_settings(federation: Federation) -> None:
    """Keep what commands without a server go by. Not before all is well: what is refused changes nothing."""
    state, config = federation.state, federation.config
    state.remember(KEEP_ROUNDS_FACT, str(config.keep_rounds))
    state.remember(TASK_FACT, json.dumps([config.task, config.task_settings]))
    state.remember(MEANING_FACT, _in_words(federation.meaning))


def _recall(federation: Federation) -> int:
    """Learn from the rounds that are over who has given what, how long they took and what scored how; then, who the
    clients were.

    In this order, since whoever is in a model is not forgotten.

    Returns:
        The version of the last model that a round has made; 0 for none. One of a round still at work is made again.
    """
    last, scored = 0, []
    for record in federation.history:
        federation.pace.note(record)
        for one in record.contributions if record.succeeded else ():
            if one.outcome == Outcome.COMPLETED.value:
                federation.population.credit(one.client_name)
        if record.evaluation is not None:
            scored.append(replace(record, contributions=()))  # a thousand of which a round may have
        last = record.number if record.succeeded else last
    _recall_scores(federation, scored)
    federation.register.recall()
    return last


def _recall_scores(federation: Federation, scored: Sequence[RoundRecord]) -> None:
    compared = comparable(scored, federation.holdout_id)
    if scored and federation.holdout_id and scored[-1] not in compared:
        hint = "their scores are kept, and compared with none of those to come"
        log.warning("the holdout is another than that of the rounds before", hint=hint)
    numbers = {record.number for record in compared}
    federation.best_elsewhere = best_versions(record for record in scored if record.number not in numbers)
    for record in compared:
        model = federation.state.models.of_version(record.number)
        if record.evaluation is not None and model.kept:
            federation.scoreboard.record(ref_of(model), record.evaluation.metrics)
        else:  # not the best of all, or collected by a version that kept the best on one holdout only
            federation.scoreboard.rounds_without_better += 1
