"""All lines of `make faults`, or those that are named; a table at the end, and JSON per line in tests/faults/results/.

    python -m tests.faults --seed 0 --count 300 kill_server kill_clients

Without a count each line does a little, in about ten minutes for all on two cores. `--full` is what docs/reliability.md
shows, in some hours.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.results import Findings, Order, conclude


@dataclass(frozen=True, slots=True)
class Counts:
    """What `count` is for a line: in a short run, and in a full one. Its docstring says what is counted."""

    short: int
    full: int


LINES: Mapping[str, Counts] = {
    "kill_server": Counts(28, 300),
    "kill_clients": Counts(14, 300),
    "cut_uploads": Counts(15, 303),
    "slow_network": Counts(1, 3),
    "hosts": Counts(1, 1),
    "crash_points": Counts(60, 0),
    "flipped_bits": Counts(50, 1000),
    "endurance": Counts(100, 1000),
    "hostile": Counts(30, 600),
    "languages": Counts(3, 40),
}


def main() -> None:
    """Run them, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="LINE", help=f"which; by default all: {', '.join(LINES)}")
    parser.add_argument("--count", type=int, help="how much each line does, in its own unit")
    parser.add_argument("--full", action="store_true", help="as much as docs/reliability.md shows")
    parser.add_argument("--seed", type=int, default=0, help="of everything random [%(default)s]")
    parser.add_argument("--lanes", type=int, default=2, help="how many federations at a time [%(default)s]")
    given = parser.parse_args()
    if unknown := set(given.lines) - LINES.keys():
        parser.error(f"no line is called {', '.join(sorted(unknown))}; there are {', '.join(LINES)}")
    all_found = [_run(name, given) for name in given.lines or LINES]
    print("\n" + "\n".join(f"{found.line:<14} {found.verdict}" for found in all_found))
    sys.exit(any(found.problems for found in all_found))


def _run(name: str, given: argparse.Namespace) -> Findings:
    counts = LINES[name]
    count = counts.full if given.full else counts.short
    order = Order(
        count=count if given.count is None else given.count,
        seed=given.seed,
        folder=Path(tempfile.mkdtemp(prefix=f"faults-{name}-")),
        lanes=given.lanes,
    )
    found: Findings = asyncio.run(importlib.import_module(f"tests.faults.{name}").run(order))
    print(file=sys.stderr)
    conclude(found, order)
    return found


if __name__ == "__main__":
    main()
