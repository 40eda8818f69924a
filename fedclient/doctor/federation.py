"""Whether what the federation learns can be learned here."""

from __future__ import annotations

import asyncio

from fedclient.doctor.scene import Scene
from fedclient.exit_codes import Stop
from fedclient.training import choose_task
from fedstream.checkup.runner import Result, failed, ok, warning
from fedstream.schema import TaskMeaning
from fedstream.sizes import size
from fedtask.registry import create_task
from fedtask.task import TaskError
from fedtask.worker import TaskWorker, WorkerCrashed


def task(scene: Scene) -> Result:
    """The task is known here, and its settings can be read."""
    federation = scene.federation
    assert federation is not None
    name, settings = federation.task.task_name, federation.task.settings
    try:
        scene.task = create_task(choose_task(name, scene.config.task), settings)
    except Stop as stop:
        return failed(f"the task {name} is not used", stop.message[:1].upper() + stop.message[1:])
    except TaskError as error:
        return failed(str(error), "Install what the coordinator names, in the same version")
    except ValueError as error:
        return failed(f"the settings of {name} cannot be read: {error}", "Install the fedstream version of the server")
    shown = ", ".join(f"{key}={value}" for key, value in sorted(settings.items()))
    return ok(f"{federation.task.federation_name} learns {name}" + (f" with {shown}" if shown else ""))


def meaning(scene: Scene) -> Result:
    """Classes and preprocessing mean the same here and there."""
    federation = scene.federation
    assert federation is not None and scene.task is not None
    mine, theirs = scene.task.meaning(), federation.meaning
    if theirs is None:
        return warning("the server is still preparing its model and cannot say", "Ask again in a minute")
    if mine == theirs:
        return ok(_classes(mine))
    return failed(f"{_words(mine)} here, {_words(theirs)} there", "Install the fedstream version of the server")


def _classes(meaning: TaskMeaning) -> str:
    if not meaning.class_names:
        return f"no classes; {meaning.preprocessing}"
    return f"classes {', '.join(meaning.class_names)}; {meaning.positive_class} is positive"


def _words(meaning: TaskMeaning) -> str:
    return f"{', '.join(meaning.class_names)} ({meaning.positive_class} positive; {meaning.preprocessing})"


async def model(scene: Scene) -> Result:
    """The model that is built here has the tensors that the federation's has."""
    federation = scene.federation
    assert federation is not None
    if not federation.schema_sha256:
        return warning("the server is still preparing its model and cannot say", "Ask again in a minute")
    worker = TaskWorker(choose_task(federation.task.task_name, scene.config.task), federation.task.settings)
    try:
        schema = (await worker.describe()).schema
    except (TaskError, WorkerCrashed) as error:
        return failed(f"the model cannot be built: {error}", "Install fedstream anew, with all it needs")
    finally:
        await asyncio.shield(worker.close())
    if schema.digest() == federation.schema_sha256:
        return ok(f"{len(schema)} tensors, {size(schema.size_bytes)}, as in the federation")
    advice = "Install the versions of fedstream and keras that the server has; `fedclient run` names the tensors"
    return failed("the model built here has other tensors than the federation's", advice)
