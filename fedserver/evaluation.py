"""The server's own worker: makes the initial model, scores every global model on the holdout, exports, reports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from fedserver.config import folder_of
from fedtask.messages import TaskDescription
from fedtask.report import FederationRecord, record_to_json
from fedtask.task import Evaluation, SiteSummary
from fedtask.worker import TaskWorker, WorkerCrashed

log = structlog.get_logger()

T = TypeVar("T")


class Evaluator:
    """A worker process, kept warm with the holdout open; without a holdout, there is one only while it has work.

    Args:
        task: reference of the task.
        settings: its settings.
        holdout: folder or `phantom`; `None` for no evaluation.
        classes: class name to folder name of the holdout.
    """

    def __init__(self, task: str, settings: Mapping[str, str], holdout: str | None, classes: Mapping[str, str]) -> None:
        self._task, self._settings, self._classes = task, settings, classes
        self._worker = TaskWorker(task, settings)
        self._holdout = holdout
        self.summary: SiteSummary | None = None
        self.test_summary: SiteSummary | None = None

    async def describe(self) -> TaskDescription:
        """The task's meaning, schema and default plan."""
        return await _in_two_tries(self._worker.describe)

    async def initial_model(self, seed: int, source: str | None, from_file: Path | None, out: Path) -> None:
        """Write the weights to start from: of an earlier model's file if one is given, else the task's own."""
        if from_file is not None:
            await _in_two_tries(partial(self._worker.read_model, from_file, out))
        else:
            await _in_two_tries(partial(self._worker.initial_weights, seed, source, out))

    async def open(self) -> SiteSummary | None:
        """Open the holdout, if there is one."""
        if self._holdout is None:
            return None
        opening = partial(self._worker.open_holdout, folder_of(self._holdout), self._classes)
        self.summary = await _in_two_tries(opening)
        for warning in self.summary.warnings:
            log.warning("holdout", warning=warning)
        return self.summary

    async def rest(self) -> None:
        """Without a holdout, the worker has nothing to do from now on before the models are exported."""
        if self._holdout is None:
            await self._worker.close()  # the next call starts it again

    async def evaluate(self, weights: Path) -> Evaluation | None:
        """Score a model on the holdout; `None` if there is none."""
        return await self._worker.evaluate(weights) if self.summary is not None else None

    async def test(self, folder: str, weights: Path) -> Evaluation:
        """Score a model on another set, once, in a worker of its own so that the holdout stays open."""
        worker = TaskWorker(self._task, self._settings)
        try:
            self.test_summary = await worker.open_holdout(folder_of(folder), self._classes)
            return await worker.evaluate(weights)
        finally:
            await worker.close()

    async def export(self, weights: Path, folder: Path, stem: str) -> list[Path]:
        """Write a model for use without this project."""
        return await self._worker.export(weights, folder, stem)

    async def render_report(self, record: FederationRecord, folder: Path, *, pictures: bool) -> None:
        """Write the federation's report, with or without what is drawn of it."""
        await self._worker.render_report(record_to_json(record), folder, pictures=pictures)

    async def close(self) -> None:
        """End the worker."""
        await self._worker.close()


async def _in_two_tries(step: Callable[[], Awaitable[T]]) -> T:
    """What a step of the start gives, for want of which there is no federation.

    One crash of the worker may be the neighbours' doing, as where the machine is short of memory for a moment.
    """
    try:
        return await step()
    except WorkerCrashed as error:
        log.error("the worker process ended unexpectedly; it is started again", because=str(error))
        return await step()
