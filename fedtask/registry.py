"""Finding a task by its name.

A reference is one of
- the name of a built-in task, `brain_mri`, `brain_mri_head` or `linear`;
- a name that an installed package registers in the entry-point group `fedstream.tasks`;
- `module:Class`, for a class of one's own that can be imported.

References come from the command line or the configuration file of the machine they are resolved on. What a server says
never reaches this module: it cannot make a site import code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from fedtask.task import Task, TaskError

ENTRY_POINT_GROUP = "fedstream.tasks"

_STEMS = {"brain_mri": "GLOBAL_MODEL_MOB"}

_BUILT_IN = {
    "brain_mri": "fedtask.brain_mri.task:BrainMri",
    "brain_mri_head": "fedtask.brain_mri_head.task:BrainMriHead",
    "linear": "fedtask.linear:Linear",
}


def task_references() -> dict[str, str]:
    """Every known task name and the `module:Class` behind it. Imports none of them."""
    registered = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**registered, **_BUILT_IN}  # a built-in name cannot be taken over by a package that happens to be installed


def is_built_in(task: Task) -> bool:
    """Whether it is of a class that comes with this package, and not somebody's own."""
    return f"{type(task).__module__}:{type(task).__name__}" in _BUILT_IN.values()


def model_stem(reference: str) -> str:
    """What the files of a task's global model are called, without their ending: where users know a name, by that."""
    return _STEMS.get(reference, "GLOBAL_MODEL")


def create_task(reference: str, settings: Mapping[str, str]) -> Task:
    """Make the task that `reference` names, with `settings`.

    Raises:
        TaskError: there is no such task, or it cannot be imported; the message lists what there is.
        ValueError: a setting is unknown or out of range.
    """
    return _task_class(reference)(settings)


def _task_class(reference: str) -> type[Task]:
    target = reference if ":" in reference else task_references().get(reference)
    if target is None:
        known = ", ".join(sorted(task_references()))
        raise TaskError(f"there is no task {reference!r}; known are {known}, and module:Class for a class of your own")
    module_name, _, class_name = target.partition(":")
    if ":" in reference and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # as `python` itself would; last, so that a file there stands in for nothing else
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # A module can fail in any way while it is imported; each is the same news to the person who named it.
        hint = "; start in the folder where its file is, or install it" if _is_absent(error, module_name) else ""
        raise TaskError(f"task {reference!r}: importing {module_name} failed: {_said(error)}{hint}") from error
    task_class = getattr(module, class_name, None)
    if not isinstance(task_class, type):
        raise TaskError(f"task {reference!r}: module {module_name} has no class {class_name!r}")
    missing = sorted(name for name in _members() if not callable(getattr(task_class, name, None)))
    if missing:
        raise TaskError(f"task {reference!r}: class {class_name} lacks {', '.join(missing)}; see fedtask.task.Task")
    return cast(type[Task], task_class)


def _members() -> list[str]:
    return [name for name, member in vars(Task).items() if callable(member) and not name.startswith("_")]


def _is_absent(error: Exception, module_name: str) -> bool:
    """Whether it is this module that there is not, and not another one that it imports."""
    return isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
