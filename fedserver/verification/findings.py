"""What a verification finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it was. `where` is an entry's field, a row or a file; `what` says how it differs."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, slots=True)
class RoundCheck:
    """One round. `checked` says in words how far it could be checked."""

    number: int
    checked: str
    recomputed: bool
    differences: Sequence[Difference] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that was looked at.

    `others` are differences that belong to no round that is over: the initial model, a round at work, missing rows.
    `last_hash` is that of the last ledger entry, in hexadecimal: whoever noted it down earlier can compare.
    """

    rounds: Sequence[RoundCheck]
    others: Sequence[Difference]
    last_hash: str

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return not self.others and not any(check.differences for check in self.rounds)
