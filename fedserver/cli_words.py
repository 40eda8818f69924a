"""How the words are read that options of several commands of `fedserver` take."""

from __future__ import annotations

from fedserver.exit_codes import ExitCode, fail
from fedtask.class_folders import split_pairs


def task_settings(words: list[str] | None) -> dict[str, str]:
    """What `--task-set` was given."""
    from fedtask.settings import read_pairs

    try:
        return read_pairs(words or [])
    except ValueError as error:
        raise fail(str(error), ExitCode.BAD_CONFIGURATION) from error


def class_folders(words: list[str] | None) -> dict[str, str]:
    """What `--classes` was given, CLASS=FOLDER; several may stand in one word, separated by commas."""
    found: dict[str, str] = {}
    for word in split_pairs(",".join(words)) if words else ():
        name, separator, folder = word.partition("=")
        if not separator or not name:
            raise fail(f"--classes takes CLASS=FOLDER, not {word!r}", ExitCode.BAD_CONFIGURATION)
        found[name.strip()] = folder.strip()
    return found
