"""The site's task in its worker process: which task, its data, its fine-tunes, and what is kept of them for people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from fedclient.config import ClientConfig
from fedclient.events import TaskOnOffer
from fedclient.exit_codes import ExitCode, Stop
from fedclient.memory import Row
from fedstream.plan import Plan
from fedtask import history, history_picture
from fedtask.messages import LocalUpdate, TaskDescription
from fedtask.task import EpochReport, SiteOptions, SiteSummary, TaskError
from fedtask.worker import TaskWorker, WorkerCrashed

log = structlog.get_logger()

_MAX_CRASHES = 2
"""Runs of one fine-tune before its crashes count as a failure: one may be the neighbours' doing, two are ours."""


class TrainingFailed(Exception):
    """A fine-tune gave no update. The message is in general words: it is told to the server."""


def choose_task(offered: str, own: str | None) -> str:
    """The task to load: a name that is registered here, or a class that the operator named as well.

    Raises:
        Stop: the server names a class of its own, or the operator's task is another one.
    """
    if own is not None and own != offered:
        instead = (
            f"give --task {offered}, if you have that class and trust it," if ":" in offered else "leave --task out"
        )
        message = f"this federation learns {offered}, not {own}: {instead} or join another federation"
        raise Stop(ExitCode.DECLINED, message)
    if ":" in offered and own is None:
        message = (
            f"this federation learns the class {offered}. Code that a server names is never loaded by itself: "
            f"if you have that class and trust it, add --task {offered}"
        )
        raise Stop(ExitCode.DECLINED, message)
    return offered


def site_options(config: ClientConfig, cache_folder: Path | None) -> SiteOptions:
    """Where the site's examples are and which of them are used, as its settings say."""
    shard, num_shards = config.shard
    return SiteOptions(
        folder=config.data,
        classes=dict(config.classes),
        shard=shard,
        num_shards=num_shards,
        division=config.division,
        division_seed=config.division_seed,
        max_examples=config.max_examples,
        cache_folder=cache_folder,
    )


@dataclass(frozen=True, slots=True)
class Site:
    """A task with this site's data, ready to train."""

    description: TaskDescription
    summary: SiteSummary


class Trainer:
    """One worker process with one task, and this site's data open in it.

    Args:
        task: as the server describes it.
        config: the site's settings.
    """

    def __init__(self, task: TaskOnOffer, config: ClientConfig) -> None:
        self._config = config
        self._worker = TaskWorker(choose_task(task.task_name, config.task), task.settings)
        self._stem = f"client_{config.name}"

    async def open(self) -> Site:
        """Start the worker, build the model, read the data.

        Raises:
            Stop: with `BAD_DATA`; the message is the task's and names files of this site.
        """
        try:
            description = await self._worker.describe()
            summary = await self._worker.open_site(site_options(self._config, self._config.cache_folder))
        except (TaskError, WorkerCrashed) as error:
            raise Stop(ExitCode.BAD_DATA, str(error)) from error
        if self._are_too_many(summary.num_examples):
            message = (
                f"this task would use {summary.num_examples} examples, more than --max-examples allows: it does not"
            )
            raise Stop(ExitCode.BAD_DATA, f"{message} heed SiteOptions.max_examples. Put fewer into the folder instead")
        _report_site(summary)
        return Site(description, summary)

    def _are_too_many(self, num_examples: int) -> bool:
        return 0 < self._config.max_examples < num_examples

    async def fine_tune(
        self, base: Path, plan: Plan, out: Path, on_report: Callable[[EpochReport], None]
    ) -> LocalUpdate:
        """Fine-tune from `base`, within the site's limit on time, and write the changed tensors to `out`.

        Raises:
            TrainingFailed: the task or the worker gave up, or the time ran out.
            asyncio.CancelledError: the work is no longer wanted.
        """
        for crash in range(1, _MAX_CRASHES + 1):
            try:
                async with asyncio.timeout(self._config.site_limits.max_training_seconds) as limit:
                    # What is trained in time may wait for the disk as long as it takes.
                    update = await self._worker.fine_tune(base, plan, out, on_report, lambda: limit.reschedule(None))
            except TimeoutError:
                raise TrainingFailed("the site's limit on training time was reached") from None
            except TaskError as error:
                log.error("local training failed", because=str(error))
                raise TrainingFailed("local training failed") from error
            except WorkerCrashed as error:
                log.error("the training process ended unexpectedly", attempt=crash, because=str(error))
            else:
                if self._are_too_many(update.num_examples):  # a task of one's own may do as it likes
                    raise TrainingFailed("the task used more examples than this site allows")
                return update
        raise TrainingFailed("the training process ended unexpectedly")

    async def save_model(self, base: Path, changes: Path) -> None:
        """Write the trained model, which is `base` with `changes`, as `OUT/client_NAME_model.*` for plain use."""
        paths = await self._worker.export(base, self._config.out_folder, f"{self._stem}_model", changes)
        log.info("saved the local model", files=[str(path) for path in paths])

    def save_history(self, rows: Sequence[Row]) -> None:
        """Write `OUT/client_NAME_training_history.csv`. Blocks, for as long as one small file takes."""
        self._config.out_folder.mkdir(parents=True, exist_ok=True)
        history.write_csv(rows, self._history("csv"))

    async def draw_history(self, *, hurry: bool) -> None:
        """Draw what `save_history` wrote as `OUT/client_NAME_training_history.png`; the worker is not asked.

        Without `hurry` it leaves the processor to others.

        Raises:
            DrawingFailed: the picture is not there, or an old one.
        """
        await history_picture.draw(
            self._history("csv"), self._history("png"), f"{self._config.name}: local training", hurry=hurry
        )

    def _history(self, kind: str) -> Path:
        return self._config.out_folder / f"{self._stem}_training_history.{kind}"

    async def save_global(self, weights: Path, stem: str) -> list[Path]:
        """Write a global model as `OUT/STEM.*`."""
        return await self._worker.export(weights, self._config.out_folder, stem)

    async def close(self) -> None:
        """End the worker. Safe to call twice, and while a call is running."""
        await self._worker.close()


def _report_site(summary: SiteSummary) -> None:
    """Say what was found, here and nowhere else: warnings may name files."""
    if summary.synthetic:
        log.warning("training on GENERATED data (a phantom), not on images of patients")
    log.info("data", training_examples=summary.num_examples, counts=dict(summary.counts), skipped=dict(summary.skipped))
    for warning in summary.warnings:
        log.warning("data", warning=warning)
    for weakness in summary.weaknesses:
        log.warning("data", weakness=weakness)
