"""What processes take: memory at its peak, and processor time, of one process and those that it started."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_PERIOD_SECONDS = 0.05
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """The process and all that it started, directly or through others, which run now; empty if it is gone."""
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(member for child in children for member in family(child))]


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that the families of these processes have taken, with members that ended and were waited for."""
    return sum(_cpu_seconds(member) for pid in pids for member in family(pid))


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # utime, stime, and both of children that were waited for, as proc(5) counts from the state.
    return sum(int(field) for field in fields[11:15]) / _TICKS_PER_SECOND


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory of a family at one time, in MiB. Pages that members share count once for each.

    `resident` is with mapped files; `own` without, which is what a machine must have; `each` is every member's own
    highest, resident (VmHWM), in the order in which they started.
    """

    resident: float = 0.0
    own: float = 0.0
    each: tuple[float, ...] = ()


@dataclass(slots=True)
class MemoryWatch:
    """Looks at a family every 50 ms, in a thread, from `start` to `stop`."""

    pid: int
    _highest: dict[int, float] = field(default_factory=dict)
    _resident: float = 0.0
    _own: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> Peak:
        """End, and say what was seen. Safe after the processes have ended."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        return Peak(self._resident, self._own, tuple(self._highest.values()))

    def _watch(self) -> None:
        while not self._over.wait(_PERIOD_SECONDS):
            seen = {pid: status for pid in family(self.pid) if (status := _status(pid))}
            self._highest |= {pid: status["VmHWM"] for pid, status in seen.items()}
            self._resident = max(self._resident, sum(status["VmRSS"] for status in seen.values()))
            own = sum(status["RssAnon"] + status["RssShmem"] for status in seen.values())
            self._own = max(self._own, own)


def _status(pid: int) -> dict[str, float]:
    """The memory lines of a process's status, in MiB; empty if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    found = {key.rstrip(":"): int(value) / 1024 for key, value, _ in fields}
    return found if "VmRSS" in found else {}
