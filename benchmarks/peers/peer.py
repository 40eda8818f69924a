"""One run of a peer, watched from outside."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.course import Course
from benchmarks.peers.progress import Progress
from benchmarks.peers.scene import PeerFailed, Scene, scene
from benchmarks.processes import MemoryWatch
from benchmarks.rows import Size

_START_SECONDS = 180.0
_ROUND_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Play:
    """What a peer is to do, and where."""

    scene: Scene
    size: Size
    rounds: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class Peer:
    """A system to measure; `requirement` is what pip installs, `note` what it does and leaves out.

    `start` starts all of it and returns the process id of the server, whose family's memory is measured. The last that
    it starts is what ends when the work is over.
    """

    name: str
    requirement: str
    note: str
    start: Callable[[Play], int]


def run_peer(peer: Peer, python: Path, size: Size, rounds: int, folder: Path) -> Course:
    """Run one round more than are measured, and have the final model checked.

    Args:
        peer: whom.
        python: that of its environment.
        size: how large.
        rounds: how many are measured.
        folder: where files may be made; what is made is removed again.

    Raises:
        PeerFailed: it did not do that.
    """
    with tempfile.TemporaryDirectory(prefix="peer-", dir=folder) as place, scene(Path(place), python) as made:
        play = Play(made, size, rounds + 1, Progress(Path(place) / "progress"))
        return _watch(play, peer.start(play))


def _watch(play: Play, server: int) -> Course:
    watch = MemoryWatch(server)
    watch.start()
    try:
        _await_rounds(play, 1, _START_SECONDS + _ROUND_SECONDS)
        _await_rounds(play, play.rounds, _ROUND_SECONDS * play.rounds)
    finally:
        peak = watch.stop()
    [wrong] = play.scene.until("the check of the last model", lambda: play.progress.verdicts, _ROUND_SECONDS)
    if wrong is not None:
        raise PeerFailed(f"{wrong} is not its initial value plus {play.rounds}")
    return Course(play.progress.ends, peak)


def _await_rounds(play: Play, count: int, seconds: float) -> None:
    play.scene.until(f"the end of round {count}", lambda: len(play.progress.ends) >= count, seconds)
