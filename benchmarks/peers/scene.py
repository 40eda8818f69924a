"""The processes of one run of a peer: started in one folder, which is also their home, and all ended at its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks.floor import ROOT

_MARK = "FEDSTREAM_BENCHMARK_SCENE"
"""Peers start processes in sessions of their own and leave orphans behind, but all inherit this variable."""

_POLL_SECONDS = 0.02
_RUN_SECONDS = 120.0
_END_SECONDS = 10.0
_LAST_CHARACTERS = 500

T = TypeVar("T")


class PeerFailed(Exception):
    """A peer did not do what it was started for. The message has its last words."""


@dataclass(slots=True)
class Scene:
    """What runs; `python` is that of the peer's environment."""

    folder: Path
    python: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str | Path) -> subprocess.Popen[bytes]:
        """Start a program of the peer, which logs to `name`.log.

        Raises:
            PeerFailed: there is no such program.
        """
        with self._log(name).open("wb") as log:
            try:
                process = subprocess.Popen(
                    [str(word) for word in command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env=self._environment(),
                    start_new_session=True,
                )
            except OSError as error:
                raise PeerFailed(f"{name} cannot be started: {error}") from error
        self._running[name] = process
        return process

    def run(self, name: str, *command: str | Path) -> None:
        """Run a program of the peer to its end.

        Raises:
            PeerFailed: it ended with an error, or not in time.
        """
        process = self.start(name, *command)
        try:
            status = process.wait(_RUN_SECONDS)
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"{name} took over {_RUN_SECONDS:.0f} s: {self._last_words(name)}") from None
        if status:
            raise PeerFailed(f"{name} ended with status {status}: {self._last_words(name)}")
        del self._running[name]

    def program(self, name: str) -> Path:
        """A command of the peer's environment."""
        return self.python.with_name(name)

    def until(self, what: str, condition: Callable[[], T | None], seconds: float) -> T:
        """The first truthy value of the condition, while all that was started runs.

        Raises:
            PeerFailed: something has ended before, or it took too long.
        """
        deadline = time.monotonic() + seconds
        while True:
            ended = [name for name, one in self._running.items() if one.poll() is not None]
            if value := condition():  # after the look at what has ended: its last act may be what is waited for
                return value
            if ended or time.monotonic() > deadline:
                name = ended[0] if ended else list(self._running)[-1]
                happened = f"{name} had ended" if ended else f"{seconds:.0f} s were over"
                raise PeerFailed(f"{happened} before {what}; {name} said: {self._last_words(name)}")
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """End everything that was started here, and all that came of it."""
        deadline = time.monotonic() + _END_SECONDS
        while (left := self._marked()) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._running.values():
                process.poll()
            time.sleep(_POLL_SECONDS)

    def _marked(self) -> list[int]:
        mark = f"{_MARK}={self.folder}\0".encode()
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is somebody else's
                if mark in (place / "environ").read_bytes():
                    found.append(int(place.name))
        return found

    def _environment(self) -> dict[str, str]:
        home = str(self.folder)
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": home, "TMPDIR": home, _MARK: home}
        return {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": "1", "FLWR_TELEMETRY_ENABLED": "0"}

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _last_words(self, name: str) -> str:
        return " ".join(self._log(name).read_text(errors="replace").split())[-_LAST_CHARACTERS:]


@contextmanager
def scene(folder: Path, python: Path) -> Iterator[Scene]:
    """A scene that is cleared at the end of the block."""
    made = Scene(folder, python)
    try:
        yield made
    finally:
        made.close()


def listens(port: int) -> bool:
    """Whether something accepts connections at this port of loopback."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are free now, each another."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
