"""Whole rounds of a federation against the floor, in turn: federation, floor, federation, floor.

Time is from the end of one aggregation to the end of the next. Memory is of the server and its worker together. With
TLS, the sites of a federation show certificates; the floor's certificate is its server's alone.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.course import Course
from benchmarks.federation import run_federation
from benchmarks.floor import measure_floor
from benchmarks.options import Options
from benchmarks.rows import Row, Security
from benchmarks.tables import Line, Table

SIZES = ("4x9", "8x100")


def run(options: Options) -> Table:
    """Measure every row."""
    rows = [Row(size, security) for size in options.sizes(SIZES) for security in (Security.MUTUAL_TLS, Security.PLAIN)]
    return Table("rounds: seconds from one new model to the next", [_measure(row, options) for row in rows])


def _measure(row: Row, options: Options) -> Line:
    count = options.rounds or row.size.rounds
    courses: list[Course] = []
    floors: list[float] = []
    for turn in range(options.repeats):
        courses.append(_federation(row, count))
        options.say(f"{row}: federation {turn + 1}, {_seconds(courses[-1].rounds)}")
        floors += measure_floor(row, count, options.folder)
        options.say(f"{row}: floor {turn + 1}, {_seconds(floors[-count:])}")
    return _line(row, courses, floors)


def _federation(row: Row, count: int) -> Course:
    folder = Path(tempfile.mkdtemp(prefix="rounds-"))
    course = run_federation(row, count, folder)
    shutil.rmtree(folder)  # kept after an error, for somebody to look at
    return course


def _line(row: Row, courses: list[Course], floors: list[float]) -> Line:
    rounds = [seconds for course in courses for seconds in course.rounds]
    seconds, floor = statistics.median(rounds), statistics.median(floors)
    figures = {
        "s a round": seconds,
        "floor, s": floor,
        "times the floor": seconds / floor,
        "server CPU, s": statistics.median(course.server_cpu_seconds for course in courses),
        "clients CPU, s": statistics.median(course.client_cpu_seconds for course in courses),
        "server MiB, resident": round(max(course.peak.resident for course in courses)),
        "own": round(max(course.peak.own for course in courses)),
    }
    return Line(str(row), figures, {"rounds_seconds": rounds, "floor_seconds": floors, **_highest(courses)})


def _highest(courses: list[Course]) -> dict[str, list[float]]:
    return {f"process_peaks_mib_{turn}": list(course.peak.each) for turn, course in enumerate(courses, 1)}


def _seconds(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values) + " s"
