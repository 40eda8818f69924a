"""What is on this machine: folders, images, memory. Nothing of it is told to anyone but the person who asks."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path

from filelock import FileLock, Timeout

from fedclient.doctor.scene import Scene
from fedclient.training import site_options
from fedstream.checkup.machine import GB, MB, available_memory, judge_folder, judge_memory
from fedstream.checkup.runner import Result, failed, ok, warning
from fedtask.images.folders import counted, told_if_unreadable
from fedtask.images.site import list_train
from fedtask.registry import is_built_in
from fedtask.returned import checked_summary
from fedtask.task import SiteSummary, Task, TaskError, reads_class_folders

_LEAST_BYTES = 100 * MB
"""The small models of brain_mri with three copies under way; below it, the first round fails."""

_COMFORTABLE_BYTES = 1 * GB
"""That, and what the frozen part of the network makes of some thousand images, kept from round to round."""

_TRAINING_BYTES = 2 * GB
"""Tensorflow with MobileNetV2 in training takes 1.1 to 1.6 GB, and decoded images up to 1.1 GB."""

_MEND_FOLDER = "Mend that, or name another folder with --data"
_MEND_TASK = "Mend it in your task; where the data is to blame, let it raise a fedtask.task.TaskError that says so"


def state_folder(scene: Scene) -> Result:
    """What must survive a restart can be written, and no other client is at it."""
    folder = scene.config.state_folder
    found = judge_folder(folder, _LEAST_BYTES, _COMFORTABLE_BYTES)
    if _is_in_use(folder):
        advice = "If you want a second one, give it another --name and --state-dir"
        return warning(f"a fedclient runs with {folder}", advice)
    return found


def _is_in_use(folder: Path) -> bool:
    if not (folder / "lock").exists():
        return False
    try:
        with FileLock(folder / "lock", timeout=0):
            return False
    except (Timeout, OSError):
        return True


def out_folder(scene: Scene) -> Result:
    """Models and plots can be written."""
    return judge_folder(scene.config.out_folder, _LEAST_BYTES, _LEAST_BYTES)


def memory(_scene: Scene) -> Result:
    """There is memory for training."""
    return judge_memory(_TRAINING_BYTES, "training", available_memory())


def class_folders(scene: Scene) -> Result:
    """Every class has its folder, where the task reads folders by class."""
    assert scene.task is not None
    if scene.config.data is None:
        return ok("generated data has all classes")
    try:
        with told_if_unreadable():
            return _look_at_folders(scene, scene.task, scene.config.data)
    except TaskError as error:
        return failed(str(error).rstrip("."), _MEND_FOLDER)


def _look_at_folders(scene: Scene, task: Task, folder: Path) -> Result:
    if not reads_class_folders(task):
        if not folder.exists():
            return failed(f"there is no file or folder {folder}", "Give what the task reads as --data")
        return ok("none: what is there is for the task to read")
    if not folder.exists():
        return failed(f"there is no folder {folder}", "Give the one that holds train/ as --data")
    listing = list_train(folder, task.meaning().class_names, scene.config.classes)
    found = f"{counted(len(listing.paths), 'file')} in {listing.folder}"
    scene.told_of_folders = frozenset(listing.warnings)
    return warning(found, notes=listing.warnings) if listing.warnings else ok(found)


async def data(scene: Scene) -> Result:
    """The folder's examples can be read; every file is looked at, and nothing is written."""
    assert scene.task is not None
    if scene.config.data is None:
        return warning("generated examples, not patients", "To train on your own, name their folder with --data")
    options = site_options(scene.config, cache_folder=None)
    try:
        summary = checked_summary(await asyncio.to_thread(scene.task.open_site, options), "open_site")
    except TaskError as error:
        return failed(str(error).rstrip("."), _MEND_FOLDER)
    except Exception as error:
        if is_built_in(scene.task):
            raise  # a defect of ours
        return failed(_words_of(error), _MEND_TASK)
    found = _counts(summary)
    notes = [note for note in summary.warnings if note not in scene.told_of_folders]
    if not (notes or summary.skipped):
        return ok(found)
    return warning(found, "Unusable files are left out" if summary.skipped else "", notes)


def _words_of(error: Exception) -> str:
    """What a task of one's own raised, and where."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    first, *_ = str(error).splitlines() or [""]
    return f"the task raised {type(error).__name__}: {first} ({at.filename}:{at.lineno} in {at.name})"


def _counts(summary: SiteSummary) -> str:
    parts = [
        f"{split} " + ", ".join(f"{count} {name}" for name, count in counts.items())
        for split, counts in summary.counts.items()
    ]
    reasons = [f"{count} {reason}" for reason, count in summary.skipped.items()]
    parts.append(counted(sum(summary.skipped.values()), "unusable file"))
    return "; ".join(parts) + (f" ({', '.join(reasons)})" if reasons else "")
