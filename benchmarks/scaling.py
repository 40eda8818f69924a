"""Seconds per round for more and more clients, and for larger and larger models, in a table and a picture.

Full clients up to what two cores can carry; from there on bare sites, a few processes of them, and one size with both,
so that the step between the two lines can be told from growth. The picture is benchmarks/results/scaling.png.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.federation import Members, bare_sites, full_clients, run_federation
from benchmarks.options import Options
from benchmarks.points import Point
from benchmarks.rows import MIB, Row, Security, Size
from benchmarks.tables import LATEST, Line, Table

SIZES = ("1x1", "4x1", "16x1", "64x1", "256x1", "1x8", "1x64", "1x1024")
PICTURE = LATEST.with_name("scaling.png")

_MOST_FULL_CLIENTS = 4
_BARE_MIB = 16
"""A bare site holds its model in memory a few times over; one size with both kinds is enough."""

_LARGE_MIB = 256
"""Of all clients together: from here on, one round is measured."""

_COPIES_IN_MEMORY = 6
"""Models that a server and its worker, and each client and its worker, may hold together: of what they hold, sums are
twice a model, and pages of files that are read count where nothing else wants them."""

_COPIES_ON_DISK = 4
"""Models that each of them keeps: a server of each round the model and its clients' updates, a client what it received
and what it sends."""


def run(options: Options) -> Table:
    """Measure each size once: a line through many sizes is its own repeat."""
    points = [
        Point(size, is_bare, _rounds(size, is_bare, options))
        for size in options.sizes(SIZES)
        for is_bare in kinds(size)
        if _fits(size, options)
    ]
    _draw(points)
    options.say(f"drawn in {PICTURE}")
    return Table("scaling: seconds from one new model to the next, TLS", [_line(point) for point in points])


def kinds(size: Size) -> Sequence[bool]:
    """Whether a size is measured with full clients (`False`), bare sites (`True`) or both."""
    if size.clients == _MOST_FULL_CLIENTS and size.mib <= _BARE_MIB:
        return [False, True]
    return [size.clients > _MOST_FULL_CLIENTS]


def _fits(size: Size, options: Options) -> bool:
    """Whether memory and disk have room; says so if not."""
    models = size.num_bytes * (size.clients + 1)
    free = {
        "memory": (os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _COPIES_IN_MEMORY),
        "disk": (shutil.disk_usage(options.folder).free, _COPIES_ON_DISK),
    }
    for name, (free_bytes, copies) in free.items():
        if models * copies > free_bytes:
            options.say(f"left out: {size}, which may need {models * copies / MIB:,.0f} MiB of {name}")
            return False
    return True


def _rounds(size: Size, is_bare: bool, options: Options) -> Sequence[float]:
    members: Members = bare_sites if is_bare else full_clients
    count = options.rounds or (1 if size.clients * size.mib >= _LARGE_MIB else size.rounds)
    folder = Path(tempfile.mkdtemp(prefix="scaling-", dir=options.folder))
    course = run_federation(Row(size, Security.MUTUAL_TLS), count, folder, members=members)
    shutil.rmtree(folder)  # kept after an error, for somebody to look at
    shown = ", ".join(f"{seconds:.2f}" for seconds in course.rounds)
    options.say(f"{size}, {_called(is_bare)}: {shown} s")
    return course.rounds


def _called(is_bare: bool) -> str:
    return "bare sites" if is_bare else "clients"


def _line(point: Point) -> Line:
    moved = 2 * point.size.clients * point.size.num_bytes
    figures = {"s a round": point.median, "MB/s, both ways together": moved / point.median / 1e6}
    return Line(f"{point.size}, {_called(point.is_bare)}", figures, {"rounds_seconds": point.seconds})


def _draw(points: Sequence[Point]) -> None:
    from benchmarks.scaling_picture import draw

    PICTURE.parent.mkdir(exist_ok=True)
    draw(points, PICTURE)
