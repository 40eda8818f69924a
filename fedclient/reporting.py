"""Which metrics a site lets leave. Everything that is sent with metrics in it goes through here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reporting:
    """What may be told: the metrics of these `names`; `None` is all of them."""

    names: frozenset[str] | None = None

    def filtered(self, metrics: Mapping[str, float | None]) -> dict[str, float | None]:
        """Those that may leave, in their order."""
        return {name: value for name, value in metrics.items() if self.names is None or name in self.names}

    def missing(self, metrics: Iterable[str]) -> list[str]:
        """The names that none of `metrics` has, sorted: slips of the pen, most likely."""
        return sorted((self.names or frozenset()).difference(metrics))

    def describe(self) -> str:
        """For people."""
        if self.names is None:
            return "every metric that the task reports"
        return f"only {', '.join(sorted(self.names))}" if self.names else "no metric"
