"""A task's settings: text on the command line and in files, typed values in code.

A task declares a frozen dataclass whose fields are made by `option`, and reads the text with `read_settings`:

    >>> @dataclass(frozen=True, slots=True)
    ... class Mine:
    ...     depth: int = option(3, "layers of the network", low=1, high=9)
    >>> read_settings(Mine, {"depth": "5"})
    Mine(depth=5)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """What is known of one setting. `low` and `high` are inclusive; `choices` empty means any text."""

    name: str
    default: str
    meaning: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]

    def allowed(self) -> str:
        """What may be given, in words."""
        if self.choices:
            return " or ".join(self.choices)
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"{self.low:g} or more" if self.low is not None else "any text"


def option(
    default: T, meaning: str, *, low: float | None = None, high: float | None = None, choices: Sequence[str] = ()
) -> T:
    """A dataclass field that `read_settings` understands: a number within bounds, a text, or a text among choices."""
    metadata = {"meaning": meaning, "low": low, "high": high, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata=metadata)


def describe_settings(kind: type[Any]) -> list[OptionInfo]:
    """Every setting of the dataclass `kind`, in order, for tables in docs."""
    return [_info(field) for field in dataclasses.fields(kind)]


def read_pairs(words: Sequence[str]) -> dict[str, str]:
    """Settings as they stand on a command line, each a `NAME=VALUE` of its own: a value may hold commas.

    Raises:
        ValueError: one is none.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name.strip() or not equals:
            raise ValueError(f"--task-set takes NAME=VALUE, such as alpha=0.35, not {word!r}")
        found[name.strip()] = value.strip()
    return found


def read_settings(kind: type[T], settings: Mapping[str, str]) -> T:
    """The dataclass `kind` with the values that `settings` gives, and defaults for the others.

    Raises:
        ValueError: a name is unknown, or a value is no number, out of bounds or none of the choices; the message says
            which and what is allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        raise ValueError(f"unknown setting {', '.join(map(repr, unknown))}; known are {', '.join(fields)}")
    return kind(**{name: _parse(fields[name], text) for name, text in settings.items()})


def _info(field: dataclasses.Field[Any]) -> OptionInfo:
    return OptionInfo(name=field.name, default=str(field.default), **field.metadata)


def _parse(field: dataclasses.Field[Any], text: str) -> int | float | str:
    info = _info(field)
    default: Any = field.default
    if isinstance(default, str):
        if info.choices and text not in info.choices:
            raise _refusal(info, text)
        return text
    try:
        value: int | float = type(default)(text)
    except ValueError:
        raise _refusal(info, text) from None
    too_low = info.low is not None and value < info.low
    too_high = info.high is not None and value > info.high
    if not math.isfinite(value) or too_low or too_high:
        raise _refusal(info, text)
    return value


def _refusal(info: OptionInfo, text: str) -> ValueError:
    return ValueError(f"setting {info.name} ({info.meaning}) is {info.allowed()}, not {text!r}")
