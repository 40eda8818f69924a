"""Clocks that tests set."""

from __future__ import annotations


class SetClock:
    """A clock that goes only when it is told to. Each process has a steady clock of its own, that starts anywhere."""

    def __init__(self, steady: float, wall: float = 1.6e9) -> None:
        self.steady, self.now = steady, wall

    def monotonic(self) -> float:
        return self.steady

    def wall(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.steady += seconds
        self.now += seconds
