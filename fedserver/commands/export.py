"""`fedserver export`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import typer

from fedserver.commands.admin import reading
from fedserver.config import ServerConfig
from fedserver.exit_codes import ExitCode, fail
from fedserver.store.facts import TASK_FACT, fact
from fedserver.store.models import StoredModel
from fedstream.errors import UnknownModel
from fedtask.registry import model_stem
from fedtask.task import TaskError
from fedtask.worker import TaskWorker, WorkerCrashed


def export_model(
    state: Path, out: Path, number: int | None, stem: str | None, task: str | None, settings: Mapping[str, str]
) -> None:
    """Write a round's global model for use without this project. Without a `task`, it is the federation's."""
    if stem is not None and (not stem or stem != Path(stem).name):
        raise fail(f"--stem is a name of a file, and {stem!r} is none; --out says where", ExitCode.BAD_CONFIGURATION)
    model = _find(state, number)
    if task is None:
        task, own = _task_of(state)
        settings = {**own, **settings}
    try:
        for path in asyncio.run(_export(model, out.resolve(), stem or model_stem(task), task, settings)):
            typer.echo(f"wrote {path} (model {model.digest} of round {model.version})")
    except TaskError as error:
        hint = f" (task {task}; --task and --task-set name another)"
        raise fail(str(error) + hint, ExitCode.BAD_CONFIGURATION) from error
    except WorkerCrashed as error:
        raise fail(str(error), ExitCode.FAILED) from error


async def _export(model: StoredModel, out: Path, stem: str, task: str, settings: Mapping[str, str]) -> list[Path]:
    worker = TaskWorker(task, settings)
    try:
        return await worker.export(model.path, out, stem)
    finally:
        await worker.close()


def _task_of(state: Path) -> tuple[str, Mapping[str, str]]:
    with reading(state) as reader:
        known = fact(reader.database, TASK_FACT)
    return json.loads(known) if known is not None else (ServerConfig.model_fields["task"].default, {})


def _find(state: Path, number: int | None) -> StoredModel:
    with reading(state) as reader:
        models = reader.models()
        try:
            found = models.latest() if number is None else models.of_version(number)
        except UnknownModel as error:
            raise fail(error.message, ExitCode.BAD_CONFIGURATION) from error
        if found is None:
            raise fail(f"{state} holds no model yet", ExitCode.BAD_STATE)
        if not found.kept:
            words = f"the model of round {number} is no longer kept (see keep_rounds); it was {found.digest.hex}"
            raise fail(words, ExitCode.BAD_CONFIGURATION)
        found.check()
        return found
