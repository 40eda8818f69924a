"""How `make bench` runs other systems, with a peer that is only a script: what is measured, ended and said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.environments import CannotInstall
from benchmarks.options import Options
from benchmarks.peers import comparison
from benchmarks.peers.peer import Peer, Play, run_peer
from benchmarks.peers.scene import PeerFailed
from benchmarks.rows import Size
from tests.support.processes import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SIZE = Size(2, 0.25)
PLAYING = """
import subprocess, sys, time
from pathlib import Path
from benchmarks.arithmetic import initial_model
from benchmarks.peers.progress import Progress

rounds, off, orphan = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
progress = Progress(Path("progress"))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
orphan.write_text(str(child.pid))
for _ in range(rounds):
    time.sleep(0.1)
    progress.aggregated()
progress.finished({name: values + rounds + off for name, values in initial_model(0.25).items()}, rounds)
"""


def playing(orphan: Path, off: float = 0.0) -> Callable[[Play], int]:
    """A peer whose model is `off` in the end, and which leaves a process in a session of its own behind."""

    def start(play: Play) -> int:
        return play.scene.start("play", sys.executable, "-c", PLAYING, str(play.rounds), str(off), orphan).pid

    return start


def failing(play: Play) -> int:
    return play.scene.start("play", sys.executable, "-c", "raise SystemExit('no disk left')").pid


def runs(pid: int) -> bool:
    """Whether it is there, and not only its exit status."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.exists() and bool(path.read_bytes())


def test_peer_that_plays_is_measured_and_all_of_it_ended(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    orphan = tmp_path_factory.mktemp("orphan") / "pid"
    course = run_peer(Peer("it", "", "", playing(orphan, off=1e-5)), Path(sys.executable), SIZE, 2, tmp_path)
    assert len(course.rounds) == 2
    assert all(0.1 <= seconds < 5 for seconds in course.rounds)
    assert course.peak.resident > 0
    until("the orphan to be gone", lambda: not runs(int(orphan.read_text())), 5.0)
    assert list(tmp_path.iterdir()) == []


def test_peer_wrong_model_is_no_result(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    orphan = tmp_path_factory.mktemp("orphan") / "pid"
    with pytest.raises(PeerFailed, match="tensor_00 is not its initial value plus 2"):
        run_peer(Peer("it", "", "", playing(orphan, off=1e-3)), Path(sys.executable), SIZE, 1, tmp_path)
    until("the orphan to be gone", lambda: not runs(int(orphan.read_text())), 5.0)


def test_comparison_absent_and_failing_peers_say_why_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def environment(name: str, _requirement: str) -> Path:
        if name == "absent":
            raise CannotInstall("no matching distribution")
        return Path(sys.executable)

    monkeypatch.setattr(comparison, "environment", environment)
    peers = [Peer("Absent", "absent==1", "", failing), Peer("Failing", "failing==1", "", failing)]
    ours, absent, broken = comparison.compare(Options(1, 1, ["2x0.25"], tmp_path, 1), peers).lines
    assert (ours.name, ours.figures["times fedstream"]) == ("2 x 0.25 MiB, fedstream", 1.0)
    assert (absent.figures, absent.note) == ({}, "cannot be installed: no matching distribution")
    assert (broken.figures, broken.note.partition(":")[0]) == ({}, "failed")
    assert broken.note.endswith("play said: no disk left")
    assert list(tmp_path.iterdir()) == []
