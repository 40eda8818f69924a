"""fedstream, NVFLARE, Flower, fedstream, ... on the same work, in one table.

Time is from the end of one aggregation to the end of the next. Memory is of all processes of the server together.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.course import Course
from benchmarks.environments import CannotInstall, environment
from benchmarks.federation import run_federation
from benchmarks.options import Options
from benchmarks.peers.flower import FLOWER
from benchmarks.peers.nvflare import NVFLARE
from benchmarks.peers.peer import Peer, run_peer
from benchmarks.peers.scene import PeerFailed
from benchmarks.rows import Row, Security, Size
from benchmarks.tables import Line, Table

SIZES = ("4x9", "8x100")
_PEERS = (NVFLARE, FLOWER)
_OURS = "fedstream"
_OUR_NOTE = "over gRPC with mutual TLS; each update and each new model is written and synced"

Measure = Callable[[Size, int, Path], Course]
"""One run: its size, how many rounds are measured, and where files may be made."""


def compare(options: Options, peers: Sequence[Peer] = _PEERS) -> Table:
    """Measure every size."""
    notes = {_OURS: _OUR_NOTE, **{peer.name: peer.note for peer in peers}}
    measures = {_OURS: _fedstream, **_installed(peers, notes)}
    lines = [line for size in options.sizes(SIZES) for line in _measure(size, measures, dict(notes), options)]
    return Table("peers: seconds from one new model to the next", lines)


def _installed(peers: Sequence[Peer], notes: dict[str, str]) -> dict[str, Measure]:
    """Those that can be had; of the others, the notes say why not."""
    found: dict[str, Measure] = {}
    for peer in peers:
        try:
            python = environment(peer.requirement.partition("==")[0], peer.requirement)
        except CannotInstall as error:
            notes[peer.name] = f"cannot be installed: {error}"
        else:
            found[peer.name] = partial(run_peer, peer, python)
    return found


def _fedstream(size: Size, rounds: int, folder: Path) -> Course:
    with tempfile.TemporaryDirectory(prefix="peers-", dir=folder) as place:
        return run_federation(Row(size, Security.MUTUAL_TLS), rounds, Path(place))


def _measure(size: Size, measures: Mapping[str, Measure], notes: dict[str, str], options: Options) -> list[Line]:
    """All lines of one size. A peer that has failed once is not asked again: it may take its time to fail."""
    courses: dict[str, list[Course]] = {name: [] for name in notes}
    left = dict(measures)
    for turn in range(options.repeats):
        for name, measure in list(left.items()):
            try:
                courses[name].append(measure(size, options.rounds or size.rounds, options.folder))
                said = ", ".join(f"{seconds:.2f}" for seconds in courses[name][-1].rounds) + " s"
            except PeerFailed as error:
                said = notes[name] = f"failed: {error}"
                del left[name]
            options.say(f"{size}, {name}, {turn + 1}: {said}")
    ours = _seconds(courses[_OURS])
    return [_line(f"{size}, {name}", courses[name], ours, note) for name, note in notes.items()]


def _line(name: str, courses: list[Course], ours: float, note: str) -> Line:
    if not courses:
        return Line(name, {}, note=note)
    figures = {
        "s a round": _seconds(courses),
        "times fedstream": _seconds(courses) / ours,
        "server MiB, resident": round(max(course.peak.resident for course in courses)),
    }
    peaks = {f"process_peaks_mib_{turn}": list(course.peak.each) for turn, course in enumerate(courses, 1)}
    rounds = [seconds for course in courses for seconds in course.rounds]
    return Line(name, figures, {"rounds_seconds": rounds, **peaks}, note)


def _seconds(courses: list[Course]) -> float:
    return statistics.median(seconds for course in courses for seconds in course.rounds)
