"""`fedserver evaluate` and `fedserver aggregate`: on model files, without a server."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from fedserver.aggregation import AggregationError, UpdateRefused, aggregate_all, strategy_named
from fedserver.config import folder_of
from fedserver.exit_codes import ExitCode, fail
from fedstream.checkup.machine import judge_folder
from fedstream.checkup.runner import Verdict
from fedstream.files import RealFileSystem, write_durably
from fedstream.manifest import manifest_of
from fedstream.schema import ModelSchema
from fedstream.weights_file import WeightsFile, file_parts
from fedtask.metrics import evaluation_to_json
from fedtask.task import Evaluation, Interval, SiteSummary, TaskError
from fedtask.worker import TaskWorker, WorkerCrashed

T = TypeVar("T")


def evaluate_file(
    model: Path,
    holdout: str,
    task: str,
    settings: Mapping[str, str],
    classes: Mapping[str, str],
    *,
    as_json: bool,
) -> None:
    """Score one model file."""
    is_there = model.is_file()

    async def work(worker: TaskWorker, folder: Path) -> tuple[Evaluation, SiteSummary]:
        weights = folder / "model.safetensors"
        try:
            await worker.read_model(model, weights)
        except TaskError as error:
            if not is_there:
                raise
            hint = "if it was made with other settings of the task, which the federation's report lists, give them with"
            raise TaskError(f"{error}; {hint} --task-set NAME=VALUE") from error
        summary = await worker.open_holdout(folder_of(holdout), classes)
        return await worker.evaluate(weights), summary

    evaluation, summary = asyncio.run(_with_worker(task, settings, work))
    if as_json:
        typer.echo(json.dumps(evaluation_to_json(evaluation), indent=2))
    else:
        show_evaluation(evaluation, summary)


def aggregate_files(
    models: Sequence[Path],
    out: Path,
    strategy: str,
    examples: str | None,
    base: Path | None,
    holdout: str | None,
    task: str,
    settings: Mapping[str, str],
    classes: Mapping[str, str],
) -> None:
    """Aggregate model files into one, and score it if there is a holdout."""
    counts = _read_examples(examples, len(models), strategy)
    _require_place(out)

    async def work(worker: TaskWorker, folder: Path) -> tuple[Evaluation, SiteSummary] | None:
        schema = (await worker.describe()).schema
        await _aggregate(worker, folder, schema, counts)
        written = await worker.export(folder / "aggregate.safetensors", folder / "export", "model")
        _keep(written, out)
        if holdout is None:
            return None
        summary = await worker.open_holdout(folder_of(holdout), classes)
        return await worker.evaluate(folder / "aggregate.safetensors"), summary

    async def _aggregate(worker: TaskWorker, folder: Path, schema: ModelSchema, counts: Sequence[int]) -> None:
        files = []
        for rank, path in enumerate(models):
            weights = folder / f"{rank}.safetensors"
            await worker.read_model(path, weights)
            files.append(WeightsFile(weights))
        start = None
        if base is not None:
            await worker.read_model(base, folder / "base.safetensors")
            start = WeightsFile(folder / "base.safetensors").weights()
        updates = [(rank, counts[rank], file.weights()) for rank, file in enumerate(files)]
        try:
            result = aggregate_all(schema, start, updates, strategy_named(strategy))
        except UpdateRefused as error:
            named = models[error.rank or 0]
            raise fail(f"{named} cannot be aggregated: {error}", ExitCode.BAD_CONFIGURATION) from error
        parts = file_parts(manifest_of(schema, result), result)
        write_durably(RealFileSystem(), folder / "aggregate.safetensors", parts)

    scored = asyncio.run(_with_worker(task, settings, work))
    typer.echo(f"wrote {out}")
    if scored is not None:
        show_evaluation(*scored)


def _require_place(out: Path) -> None:
    """To miss it only after the work would be late."""
    if not out.parent.is_dir():
        raise fail(f"there is no folder {out.parent}; make it, or give another --out", ExitCode.BAD_CONFIGURATION)
    if out.is_dir():
        raise fail(f"{out} is a folder; give --out the name of a file", ExitCode.BAD_CONFIGURATION)
    judged = judge_folder(out.parent, 1, 1)
    if judged.verdict is Verdict.FAILED:
        raise fail(f"--out: {judged.found}. {judged.advice}", ExitCode.BAD_CONFIGURATION)


def _keep(written: Sequence[Path], out: Path) -> None:
    matching = [path for path in written if path.name.endswith(out.suffix)]
    if not matching:
        endings = ", ".join(sorted({path.suffix for path in written}))
        raise fail(
            f"{out.name}: this task writes {endings}; give --out one of these endings", ExitCode.BAD_CONFIGURATION
        )
    try:
        write_durably(RealFileSystem(), out.resolve(), [matching[0].read_bytes()])
    except OSError as error:
        words = f"{out} cannot be written ({error.strerror}); mend that, or give another --out"
        raise fail(words, ExitCode.FAILED) from error


def _read_examples(text: str | None, number: int, strategy: str) -> list[int]:
    if text is None:
        if strategy == "fedavg" and number > 1:
            message = "fedavg weighs each model by its training examples: give --examples, or use --strategy uniform"
            raise fail(message, ExitCode.BAD_CONFIGURATION)
        return [1] * number
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if len(counts) != number or min(counts) < 1:
        message = f"--examples takes {number} positive numbers, one per model, such as 400,320; not {text!r}"
        raise fail(message, ExitCode.BAD_CONFIGURATION)
    return counts


async def _with_worker(
    task: str, settings: Mapping[str, str], work: Callable[[TaskWorker, Path], Coroutine[Any, Any, T]]
) -> T:
    worker = TaskWorker(task, settings)
    try:
        with tempfile.TemporaryDirectory(prefix="fedstream-") as folder:
            return await work(worker, Path(folder))
    except (TaskError, AggregationError, ValueError) as error:
        raise fail(str(error), ExitCode.BAD_CONFIGURATION) from error
    except WorkerCrashed as error:
        raise fail(str(error), ExitCode.FAILED) from error
    finally:
        await worker.close()


def show_evaluation(evaluation: Evaluation, summary: SiteSummary) -> None:
    """Scores with their intervals, the confusion matrix, and what is known to be wrong with the data."""
    console = Console(markup=False)  # names of classes are names of folders
    table = Table(title=f"{evaluation.num_examples} examples", title_justify="left")
    every = {"95% interval": evaluation.intervals, f"of {evaluation.num_groups} patients": evaluation.grouped_intervals}
    intervals = {title: each for title, each in every.items() if each}
    for column in ("metric", "value", *intervals):
        table.add_column(column)
    for name, value in evaluation.metrics.items():
        shown = f"{value:.4f}" if value is not None else f"undefined: {evaluation.undefined.get(name, '')}"
        table.add_row(name, shown, *(_between(each.get(name)) for each in intervals.values()))
    console.print(table)
    names = evaluation.class_names
    if [len(row) for row in evaluation.confusion] == [len(names)] * len(names):  # a task may give one without the other
        for actual, row in zip(names, evaluation.confusion, strict=True):
            cells = ", ".join(f"{count} as {name}" for name, count in zip(names, row, strict=True))
            console.print(f"of class {actual}: {cells}")
    if evaluation.grouped_intervals:
        console.print(
            f"By their sub-folders the examples are of {evaluation.num_groups} patients, if each is one; the last "
            "column holds where all examples of a patient are right or wrong together."
        )
    if summary.synthetic:
        console.print("These are generated phantom images, not patients.")
    for weakness in summary.weaknesses:
        console.print(f"Known weakness of the data: {weakness}")


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"
