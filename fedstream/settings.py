"""What the settings of both ends have in common: a TOML file or options, checked field by field."""

from __future__ import annotations

import errno
import os
import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Settings(BaseModel):
    """Settings that cannot be changed afterwards, and of which each has a name that is known.

    A number is no `true`, which pydantic would take for 1, and an empty text names no file or folder: as a path, it
    would be the folder that the command was started in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_meant(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError("true and false are for what is on or off, and this is not")
        if kind is Path or Path in get_args(kind):
            require_named(value)
        return value


def read_settings(file: Path) -> dict[str, Any]:
    """What stands in a TOML file. A text that begins with `~/` is below the home of this user, as on a command line.

    Raises:
        OSError: it cannot be read, or has a path below a home that this user does not have.
        ValueError: it is not TOML.
    """
    text = file.read_text(encoding="utf-8-sig")  # editors on other systems mark the beginning
    return {key: _at_home(value) for key, value in tomllib.loads(text).items()}


def _at_home(value: Any) -> Any:
    """A path below the home folder in full: nobody else puts it in, and a folder of the name `~` would be made.

    Earlier versions made it so. What is there stays in use: a server would begin a new federation elsewhere.
    """
    if not isinstance(value, str) or value[:2] not in ("~", "~/") or os.access(value, os.F_OK):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        message = f"{value} is in the home folder, and this user has none: write the whole path, or set HOME"
        raise OSError(errno.ENOENT, message) from error


def require_named(value: object) -> None:
    """See that what is to name a file or folder does.

    Raises:
        ValueError: it is empty.
    """
    if value == "":
        raise ValueError("is empty; name a file or folder, or leave it off")
