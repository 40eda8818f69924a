"""Servers and clients as processes of their own, as users run them: TLS, free ports, logs in files, none left over."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc

from fedserver.server import Listening
from fedserver.store.folder import read_contact
from fedstream.v1 import admin_pb2, admin_pb2_grpc
from tests.support import joining

PATIENCE_SECONDS = 90.0
"""How long anything may take before a test fails. Only ever waited for in full by a test that fails anyway."""

_POLL_SECONDS = 0.03

T = TypeVar("T")


class NotInTime(AssertionError):
    """What a test waited for did not happen."""


def until(what: str, condition: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """The first truthy value of `condition`; fails, naming `what`, when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise NotInTime(f"waited {seconds:.0f} s for: {what}")
        time.sleep(_POLL_SECONDS)
    return value


async def soon(what: str, condition: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """As `until`, for tests that share their event loop with a server."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise NotInTime(f"waited {seconds:.0f} s for: {what}")
        await asyncio.sleep(_POLL_SECONDS)
    return value


@dataclass(slots=True)
class Running:
    """A child process whose output goes to `log`."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        """All it has said so far."""
        return self.log.read_text(errors="replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of its log that are JSON, which all but a few for people are."""
        return [json.loads(line) for line in self.text.splitlines() if line.startswith("{") and line.endswith("}")]

    def said(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        return [line for line in self.events if line.get("event") == event]

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise NotInTime(f"waited {seconds:.0f} s for the end of {self.log.name}, which said\n{self.text}") from None

    async def ended(self, seconds: float = PATIENCE_SECONDS) -> int:
        """As `wait`, for tests that share their event loop with a server."""
        return await asyncio.to_thread(self.wait, seconds)

    def end(self) -> None:
        """Make sure that it is gone."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(10.0)


@dataclass(slots=True)
class RunningServer(Running):
    """A server process that serves."""

    listening: Listening
    state: Path
    out: Path

    @contextmanager
    def administration(self) -> Iterator[admin_pb2_grpc.AdminServiceStub]:
        """Its administration."""
        with grpc.insecure_channel(self.listening.admin_address) as channel:
            yield admin_pb2_grpc.AdminServiceStub(channel)

    def until(self, what: str, condition: Callable[[Look], T | None]) -> T:
        """As the function of that name; the condition is given what the server says of itself each time."""
        with self.administration() as stub:

            def look() -> T | None:
                assert self.process.poll() is None, f"the server ended while a test waited for: {what}\n{self.text}"
                return condition(Look(stub))

            return until(what, look)

    @property
    def summary(self) -> dict[str, Any]:
        """The report's summary."""
        found: dict[str, Any] = json.loads((self.out / "report" / "summary.json").read_text())
        return found


@dataclass(frozen=True, slots=True)
class Look:
    """What a server says of itself now."""

    stub: admin_pb2_grpc.AdminServiceStub

    @property
    def state(self) -> admin_pb2.GetStateResponse:
        """What it does and waits for."""
        return self.stub.GetState(admin_pb2.GetStateRequest(), timeout=PATIENCE_SECONDS)

    @property
    def clients(self) -> dict[str, str]:
        """Each client's state, in lower case."""
        listed = self.stub.ListClients(admin_pb2.ListClientsRequest(), timeout=PATIENCE_SECONDS).clients
        names = admin_pb2.ClientState.Name
        return {client.name: names(client.state).removeprefix("CLIENT_STATE_").lower() for client in listed}

    @property
    def parts(self) -> dict[str, admin_pb2.Participation]:
        """What each client does in the latest round; empty before the first."""
        if not self.state.HasField("round"):
            return {}
        detail = self.stub.GetRound(admin_pb2.GetRoundRequest(), timeout=PATIENCE_SECONDS)
        return {part.client_name: part for part in detail.participations}

    @property
    def rounds_over(self) -> int:
        """How many rounds are over."""
        listed = self.stub.ListRounds(admin_pb2.ListRoundsRequest(), timeout=PATIENCE_SECONDS).rounds
        return sum(one.phase == admin_pb2.ROUND_PHASE_DONE for one in listed)


def looking(listening: Listening, what: str, condition: Callable[[Look], T | None]) -> T:
    """As `until`; the condition is given what the server there says of itself each time.

    It blocks: of a server in the test's own loop it is to be asked in another thread.
    """
    with grpc.insecure_channel(listening.admin_address) as channel:
        look = Look(admin_pb2_grpc.AdminServiceStub(channel))
        return until(what, lambda: condition(look))


@dataclass(frozen=True, slots=True)
class Said:
    """What a command that has ended has said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output as JSON."""
        return json.loads(self.out)


@dataclass(slots=True)
class Stage:
    """The processes of one test, in one folder. `close` ends those that still run, each by its own id."""

    folder: Path
    running: list[Running] = field(default_factory=list)

    def start(self, log: str, command: Sequence[str], python_path: Path | None = None) -> Running:
        """Start a module or file with its arguments; `python_path` is where it finds tasks that are not installed."""
        is_file = command[0].endswith(".py")
        words = [sys.executable, *command] if is_file else [sys.executable, "-m", *command]
        return self.launch(log, words, python_path)

    def launch(self, log: str, words: Sequence[str], python_path: Path | None = None) -> Running:
        """Start any program."""
        path = self.folder / f"{log}.log"
        with path.open("ab") as stream:
            process = subprocess.Popen(
                words,
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=_environment(python_path),
            )
        running = Running(process, path)
        self.running.append(running)
        return running

    def server(
        self,
        *options: str,
        name: str = "server",
        listen: str = "127.0.0.1:0",
        task: str = "linear",
        python_path: Path | None = None,
        open_enrolment: bool = False,
        pictures: bool = False,
        **settings: object,
    ) -> RunningServer:
        """Start a server and wait until it serves. `settings` are of the task.

        Drawing `pictures` would be most of what it does at its end.
        """
        state, out = self.folder / name / "state", self.folder / name / "out"
        command = ["fedserver.cli", "run", "--task", task, "--listen", listen, "--state", str(state), "--out", str(out)]
        command += ["--open-enrolment"] if open_enrolment and "--plaintext" not in options else []
        # A server that comes back to its port finds the next one, where sites would join, taken by whoever was quicker.
        command += ["--enrol-listen", "127.0.0.1:0"] if not listen.endswith(":0") else []
        command += [] if pictures else ["--no-pictures"]
        command += [word for key, value in settings.items() for word in ("--task-set", f"{key}={value}")]
        started = self.start(name, [*command, *options], python_path)

        def contact() -> dict[str, Any] | None:
            assert started.process.poll() is None, f"the server did not start:\n{started.text}"
            found = read_contact(state)
            return found if found.get("pid") == started.process.pid else None

        found = until(f"{name} to serve", contact)
        listening = Listening(found["address"], found["fingerprint"], found["admin"], found["enrolment"])
        return RunningServer(started.process, started.log, listening, state, out)

    def client(
        self,
        name: str,
        listening: Listening,
        *options: str,
        python_path: Path | None = None,
        shard: str = "0/1",
        home: str = "",
        pictures: bool = False,
    ) -> Running:
        """Start a client on generated data; what it makes is in the folder `home`, which is called as it is itself.

        Drawing `pictures` would be most of its work.
        """
        folder = self.folder / (home or name)
        command = [*_joining(name, listening), "--server", listening.address, "--name", name]
        command += ["--data", "phantom", "--shard", shard]
        command += ["--out", str(folder), "--state-dir", str(folder / "state")]
        command += [] if pictures else ["--no-pictures"]
        return self.start(folder.name, [*command, *options], python_path)

    def history(self, name: str) -> list[dict[str, str]]:
        """The rows of a client's training history."""
        path = self.folder / name / f"client_{name}_training_history.csv"
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def command(self, *words: str, said: str = "") -> Said:
        """Run a command to its end; `words` begin with `fedserver` or `fedclient`, `said` is its standard input."""
        program, *rest = words
        done = subprocess.run(
            [sys.executable, "-m", f"{program}.cli", *rest],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=_environment(None),
            timeout=PATIENCE_SECONDS,
            check=False,
            input=said,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def close(self) -> None:
        """End what still runs, the last started first."""
        for running in reversed(self.running):
            running.end()


def _joining(name: str, listening: Listening) -> list[str]:
    """The command of a client, up to how it knows the server and the server knows it."""
    if listening.enrolment_address is not None:
        folder = joining.identity_folder(listening.admin_address, name)
        before = [joining.__file__, listening.admin_address, listening.enrolment_address, name]
        return [*before, "run", "--identity", str(folder)]
    trust = ["--fingerprint", listening.fingerprint] if listening.fingerprint else ["--plaintext"]
    return ["fedclient.cli", "run", *trust]


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """A stage that is cleared at the end of the block."""
    made = Stage(folder)
    try:
        yield made
    finally:
        made.close()


def _environment(python_path: Path | None) -> Mapping[str, str]:
    known = os.environ.get("PYTHONPATH")
    paths = [str(path) for path in (python_path, known) if path]
    path = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    # Tables are as wide as their content needs, whatever terminal the tests run in.
    return {**os.environ, "COLUMNS": "200", **path}
