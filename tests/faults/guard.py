"""Runs a server or a client and kills it with SIGKILL at an instant of a phase that its log says it is in.

    python -m tests.faults.guard '{"of": "server", "command": [...], "log": "FILE",
                                   "phase": "publish", "round": 2, "delay": 0.01}'

A process of its own, so that nothing delays the kill, with real-time priority where the system grants it. What the
killed process had started is killed with it. Prints what happened as JSON. Ends the process when its own standard input
ends, so that none is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

from tests.faults.phases import ClientPhase, ClientTracker, Phase, PhaseTracker, Tracker

_SHORTER = 0.5
"""A phase that was over before the kill was due gets its next kill after this share of the delay."""


@dataclass(slots=True)
class Guard:
    """What one guard does. `delay_seconds` is from the entry into the phase `aim`; no aim, no kill.

    `durations` are spans in seconds, one for each time that a phase was left.
    """

    command: list[str]
    log: Path
    aim: Phase | ClientPhase | None
    round: int
    delay_seconds: float
    tracker: Tracker
    due: float | None = None
    entered: float = field(default_factory=time.monotonic)
    durations: list[tuple[str, float]] = field(default_factory=list)
    killed: bool = False

    def run(self) -> dict[str, Any]:
        """Run the process to its end."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            assert process.stderr is not None
            _hurry()
            self._aim_again()
            self._watch(process, process.stderr, log)
        status = process.wait()
        return {
            "killed": self.killed,
            "status": status,
            "phase": self.tracker.phase.value,
            "round": self.tracker.round,
            "durations": self.durations,
        }

    def _watch(self, process: subprocess.Popen[bytes], stderr: IO[bytes], log: BinaryIO) -> None:
        pending = b""
        sources: list[Any] = [stderr, 0]
        while True:
            wait = None if self.due is None else max(0.0, self.due - time.monotonic())
            ready, _, _ = select.select(sources, [], [], wait)
            if self.due is not None and time.monotonic() >= self.due:
                self._kill(process)
            if 0 in ready and not os.read(0, 1):
                process.kill()
                return
            if stderr not in ready:
                continue
            data = os.read(stderr.fileno(), 1 << 16)
            if not data:
                return
            log.write(data)
            log.flush()
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self._follow(line)

    def _follow(self, line: bytes) -> None:
        before = self.tracker.phase
        self.tracker.feed(line)
        if self.tracker.phase is before:
            return
        now = time.monotonic()
        self.durations.append((before.value, now - self.entered))
        self.entered = now
        if self.due is not None:
            self.delay_seconds *= _SHORTER
        self._aim_again()

    def _aim_again(self) -> None:
        hit = self.tracker.phase is self.aim and self.tracker.round >= self.round and not self.killed
        self.due = self.entered + self.delay_seconds if hit else None

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        started = _children(process.pid)
        process.kill()
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.killed, self.due = True, None


def _children(pid: int) -> list[int]:
    """Processes that it has started, where the system says so; elsewhere they end by themselves."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _hurry() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def main() -> None:
    """Do what the argument says."""
    order = json.loads(sys.argv[1])
    phases: type[Phase | ClientPhase] = Phase if order["of"] == "server" else ClientPhase
    tracker: Tracker = PhaseTracker() if order["of"] == "server" else ClientTracker()
    aim = phases(order["phase"]) if order["phase"] else None
    guard = Guard(order["command"], Path(order["log"]), aim, order["round"], order["delay"], tracker)
    print(json.dumps(guard.run()), flush=True)


if __name__ == "__main__":
    main()
