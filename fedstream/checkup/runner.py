"""Checks in a row. One that needs another is skipped when that one failed, and says so.

A check is a function that looks at one thing and returns a `Result`; what it learns for later checks it leaves in the
scene, which both commands define for themselves.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S")


class Verdict(enum.Enum):
    """What came of a check. Values are the words shown."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """`found` is what is so, `advice` a sentence on what to do about it, empty where there is nothing to do.

    `notes` are single things that make it so, where there may be many: each gets a line of its own.
    """

    verdict: Verdict
    found: str
    advice: str = ""
    notes: tuple[str, ...] = ()


def ok(found: str) -> Result:
    """All is well."""
    return Result(Verdict.OK, found)


def warning(found: str, advice: str = "", notes: Sequence[str] = ()) -> Result:
    """It will work, but a person should know."""
    return Result(Verdict.WARNING, found, advice, tuple(notes))


def failed(found: str, advice: str) -> Result:
    """It will not work."""
    return Result(Verdict.FAILED, found, advice)


def skipped(found: str) -> Result:
    """It could not be looked at, or was not asked for."""
    return Result(Verdict.SKIPPED, found)


@dataclass(frozen=True, slots=True)
class Check(Generic[S]):
    """One check.

    `needs` names checks before it whose failure leaves nothing to look at; one that is not in the row is no need.
    `code` is the exit status that its failure gives the command.
    """

    name: str
    look: Callable[[S], Result | Awaitable[Result]]
    code: int
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check of a row came to."""

    name: str
    result: Result
    code: int

    @property
    def lines(self) -> list[str]:
        """For people: one line, and below it one per note."""
        result = self.result
        advice = f". {result.advice}" if result.advice else ""
        first = f"{result.verdict.value:<8} {self.name}: {result.found}{advice}"
        return [_in_one_line(text) for text in (first, *(f"{_INDENT}- {note}" for note in result.notes))]


_INDENT = " " * 9


def _in_one_line(text: str) -> str:
    """Names of files may have line ends in them."""
    return " ".join(text.split("\n"))


async def examine(checks: Sequence[Check[S]], scene: S) -> AsyncIterator[Finding]:
    """Run the checks in order, and give each finding as soon as it is there."""
    lost: set[str] = set()
    for check in checks:
        missing = [need for need in check.needs if need in lost]
        result = skipped(f"nothing to look at without {missing[0]}") if missing else await _look(check, scene)
        if result.verdict in (Verdict.FAILED, Verdict.SKIPPED):
            lost.add(check.name)
        yield Finding(check.name, result, check.code)


async def _look(check: Check[S], scene: S) -> Result:
    try:
        result = check.look(scene)
        return await result if inspect.isawaitable(result) else result
    except Exception as error:  # noqa: BLE001 - one check that breaks must not cost the person the others
        found = f"the check itself broke ({type(error).__name__}: {error})"
        return failed(found, "This is a defect; please report it with this line")
