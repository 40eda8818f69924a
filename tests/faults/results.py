"""What a line of `make faults` found: a table for people, JSON for machines, and whether the promise held."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

RESULTS = Path(__file__).parent / "results"


@dataclass(slots=True)
class Findings:
    """One line's result. `figures` are rows of the table; `problems` are broken promises, and empty if all held.

    `skipped` says why the line could not be run here, and is empty if it was.
    """

    line: str
    promise: str
    figures: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """In a word or a sentence."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        return "held" if not self.problems else f"BROKEN, {len(self.problems)} times"


@dataclass(frozen=True, slots=True)
class Order:
    """How much to try. What a line does with `count` is in its module's docstring."""

    count: int
    seed: int
    folder: Path
    lanes: int = 2


def parse_order(description: str, count: int) -> tuple[int, int, int]:
    """Read `--count`, `--seed` and `--lanes`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=count, help="how many to run [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of everything random [%(default)s]")
    parser.add_argument("--lanes", type=int, default=2, help="how many at a time [%(default)s]")
    given = parser.parse_args()
    return given.count, given.seed, given.lanes


def run_alone(description: str, count: int, run: Callable[[Order], Coroutine[Any, Any, Findings]]) -> NoReturn:
    """A line as a command of its own. What failed is left on disk, for somebody to look at."""
    given, seed, lanes = parse_order(description, count)
    order = Order(given, seed, Path(tempfile.mkdtemp(prefix="faults-")), lanes)
    found = asyncio.run(run(order))
    print(file=sys.stderr)
    conclude(found, order)
    sys.exit(bool(found.problems))


def conclude(found: Findings, order: Order) -> None:
    """Show and keep a result, and tidy up behind it if all is well."""
    show(found)
    print(f"  kept in {keep(found, order)}")
    if found.problems:
        print(f"  what was left is in {order.folder}", flush=True)
    else:
        shutil.rmtree(order.folder, ignore_errors=True)


def show(found: Findings) -> None:
    """Print the table."""
    print(f"\n{found.line}: {found.promise}")
    width = max((len(label) for label in found.figures), default=0)
    for label, value in found.figures.items():
        print(f"  {label:<{width}}  {_shown(value)}")
    for problem in found.problems[:20]:
        print(f"  ! {problem}")
    print(f"  => {found.verdict} ({found.seconds:.0f} s)", flush=True)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return str(value)


def keep(found: Findings, order: Order) -> Path:
    """Write the result, with what is needed to repeat it."""
    RESULTS.mkdir(exist_ok=True)
    facts = {
        **asdict(found),
        "verdict": found.verdict,
        "seed": order.seed,
        "count": order.count,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": sys.version.split()[0]},
    }
    path = RESULTS / f"{found.line}.json"
    path.write_text(json.dumps(facts, indent=2, default=str) + "\n")
    return path
