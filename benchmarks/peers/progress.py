"""What a peer's server tells the benchmark, in a file: when each aggregation ended, and whether the model is right.

A peer's own code writes it, in an environment that has the peer's packages and numpy, not those of fedstream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arithmetic import first_wrong

_TOLERANCE = 1e-4
"""Peers multiply by 1/N, which is exact for a power of two. A client that is missing makes more than that."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A file of JSON lines."""

    path: Path

    def aggregated(self) -> None:
        """An aggregation has ended now."""
        self._write({"ended": time.time()})

    def finished(self, model: Mapping[str, np.ndarray], rounds: int) -> None:
        """This is the last model, after so many rounds."""
        self._write({"wrong": first_wrong(model, rounds, _TOLERANCE)})

    @property
    def ends(self) -> list[float]:
        """When aggregations ended, in seconds since the epoch."""
        return [line["ended"] for line in self._lines() if "ended" in line]

    @property
    def verdicts(self) -> list[str | None]:
        """Nothing before the end; then the first tensor of the last model that is wrong, `None` if all are right."""
        return [line["wrong"] for line in self._lines() if "wrong" in line]

    def _write(self, line: Mapping[str, object]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        # A line that is being written has no end yet.
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
