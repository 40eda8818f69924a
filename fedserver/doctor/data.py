"""The task and the labelled folders on which global models are scored."""

from __future__ import annotations

from fedserver.config import GENERATED, ServerConfig, folder_of
from fedserver.overlap import overlap
from fedserver.store import StateError
from fedserver.store.folder import is_in_use
from fedstream.checkup.runner import Result, Verdict, failed, ok, warning
from fedtask.images.folders import counted
from fedtask.registry import create_task
from fedtask.task import TaskError


def task(config: ServerConfig) -> Result:
    """The task is known, and takes its settings. No model is built: that would import tensorflow."""
    try:
        meaning = create_task(config.task, config.task_settings).meaning()
    except (TaskError, ValueError) as error:
        return failed(str(error).rstrip("."), "Check --task and --task-set")
    return ok(f"{config.task}: classes {', '.join(meaning.class_names)}; {meaning.positive_class} is positive")


_OF_THE_SERVER = ok("none is given here; the server that runs has settings of its own")


def holdout(config: ServerConfig) -> Result:
    """Models can be scored as rounds go by."""
    if config.holdout is None and _is_served(config):
        return _OF_THE_SERVER
    if config.holdout is None:
        advice = "Give a labelled folder with --holdout, or nobody sees whether rounds make the model better"
        return warning("none: global models are not scored", advice)
    return _folder(config, config.holdout, "--holdout")


def _is_served(config: ServerConfig) -> bool:
    try:
        return is_in_use(config.state)
    except StateError:  # another check says that nobody may look
        return False


def test(config: ServerConfig) -> Result:
    """The final model can be scored on images that nothing was chosen by."""
    if config.test is None and config.holdout is not None:
        return ok("none: best round and final score come from the same holdout")
    if config.test is None:
        return _OF_THE_SERVER if _is_served(config) else ok("none: the final model is not scored")
    found = _folder(config, config.test, "--test")
    if found.verdict is Verdict.FAILED or not (shared := overlap(config)):
        return found
    return warning(found.found, "Keep examples apart that nothing else looks at", notes=(*found.notes, shared))


def _folder(config: ServerConfig, setting: str, option: str) -> Result:
    if setting == GENERATED:
        return warning("generated examples, not patients", f"To score on real ones, name their folder with {option}")
    try:
        opened = create_task(config.task, config.task_settings)
        summary = opened.open_holdout(folder_of(setting), config.classes)
    except TaskError as error:
        return failed(str(error).rstrip("."), f"Name a labelled folder with {option}")
    counts = ", ".join(f"{count} {name}" for split in summary.counts.values() for name, count in split.items())
    found = f"{counts}; {counted(sum(summary.skipped.values()), 'unusable file')}"
    return warning(found, notes=summary.warnings) if summary.warnings else ok(found)
