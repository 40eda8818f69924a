"""Options that several commands of `fedserver` have, and how their words are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedserver.exit_codes import ExitCode, fail

State = Annotated[Path, typer.Option(help="State directory of the server.", show_default=True)]
DEFAULT_STATE = Path("runs/server/state")


def task_settings(words: list[str] | None) -> dict[str, str]:
    """What `--task-set` was given."""
    from fedtask.settings import read_pairs

    try:
        return read_pairs(words or [])
    except ValueError as error:
        raise fail(str(error), ExitCode.BAD_CONFIGURATION) from error


def pairs(values: list[str] | None, option: str) -> dict[str, str] | None:
    """`a=b` arguments as a mapping; several may stand in one, separated by commas."""
    if not values:
        return None
    found: dict[str, str] = {}
    for value in ",".join(values).split(","):
        key, separator, item = value.partition("=")
        if not separator or not key:
            raise fail(f"{option} takes NAME=VALUE, not {value!r}", ExitCode.BAD_CONFIGURATION)
        found[key.strip()] = item.strip()
    return found
