"""What is made of a federation that is over: the score on the test set, model files, and the report."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from fedserver.federation import Federation, FederationState
from fedserver.overlap import overlap
from fedserver.records import describe_file, federation_record
from fedserver.store.models import StoredModel
from fedtask.registry import model_stem
from fedtask.report import FederationRecord, ModelFile
from fedtask.task import Evaluation, TaskError
from fedtask.worker import WorkerCrashed

log = structlog.get_logger()


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
    best, last = federation.best_model, federation.model
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
