"""The README's commands between hosts: a server and three sites, each with an address of its own.

Hosts are network namespaces on one switch. Skipped, with the reason, where they cannot be made.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import Running, until

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(300)]

SITES = ("site-a", "site-b", "site-c")
TOKEN = re.compile(r"fsj1_[A-Za-z0-9_-]+")
COMMAND_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace with one address, and a folder that stands for its disk."""

    namespace: str
    address: str
    folder: Path

    def command(self, program: str, *words: str) -> list[str]:
        """`fedserver` or `fedclient`, as a command of this host."""
        start = f"from {program}.cli import main; main()"
        return ["ip", "netns", "exec", self.namespace, sys.executable, "-c", start, *words]

    def run(self, program: str, *words: str) -> str:
        """Run it to its end; returns what it printed."""
        done = subprocess.run(
            self.command(program, *words),
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{program} {words[0]} on {self.address}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, program: str, *words: str) -> Running:
        """Start it."""
        log = self.folder / f"{program}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self.command(program, *words),
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        return Running(process, log)

    def _environment(self) -> dict[str, str]:
        # Each host has a home of its own, where a site's identity is by default.
        checkout = str(Path(__file__).parents[2])
        return {**os.environ, "HOME": str(self.folder), "XDG_STATE_HOME": "", "PYTHONPATH": checkout}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def hosts(folder: Path, count: int) -> Iterator[list[Host]]:
    """So many hosts on one switch, which is a namespace too; all gone with the block."""
    mark = f"fs-{os.getpid()}"
    switch, made = (
        f"{mark}-switch",
        [Host(f"{mark}-{i}", f"10.213.78.{i + 1}", folder / f"host-{i}") for i in range(count)],
    )
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for number, host in enumerate(made):
            _plug_in(host, switch, number)
        yield made
    finally:
        for name in (switch, *(host.namespace for host in made)):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                _ip("netns", "delete", name)


def _plug_in(host: Host, switch: str, number: int) -> None:
    host.folder.mkdir()
    name, port = host.namespace, f"port{number}"
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "link", "add", "cable", "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", name, "address", "add", f"{host.address}/24", "dev", "cable")
    _ip("-n", name, "link", "set", "cable", "up")
    _ip("-n", switch, "link", "set", port, "master", "switch")
    _ip("-n", switch, "link", "set", port, "up")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[list[Host]]:
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` command here (package iproute2)")
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(hosts(tmp_path, 1 + len(SITES)))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', '') or error}")
        yield made


@contextmanager
def running(host: Host, program: str, *words: str) -> Iterator[Running]:
    """A command that is ended with the block."""
    started = host.start(program, *words)
    try:
        yield started
    finally:
        started.end()


def test_server_and_three_sites_on_hosts_of_their_own_join_and_finish(network: Sequence[Host]) -> None:
    server, *sites = network
    # As in the README, but for a task that needs no tensorflow and a state directory on this host's disk.
    state = ("--state", "state")
    server.run("fedserver", "init", "--advertise", server.address, "--listen", "0.0.0.0:8443", *state)
    options = ("--min-clients", "3", "--rounds", "2", "--task", "linear", "--holdout", "phantom", "--out", "out")
    with contextlib.ExitStack() as stack:
        serving = stack.enter_context(running(server, "fedserver", "run", *state, *options))
        until("the server to serve", lambda: serving.said("serving") or _still_runs(serving))
        for name, site in zip(SITES, sites, strict=True):
            (token,) = TOKEN.findall(server.run("fedserver", "invite", name, *state))
            said = site.run("fedclient", "join", f"{server.address}:8443", "--token", token)
            assert said.startswith(f"joined as {name}; ")
        clients = [stack.enter_context(running(site, "fedclient", "run", "--data", "phantom")) for site in sites]
        statuses = [client.wait() for client in (*clients, serving)]
    assert statuses == [0] * len(network), serving.text
    listed = server.run("fedserver", "clients", *state)
    assert all(name in listed for name in SITES)
    assert len(serving.said("published")) == 2


def _still_runs(serving: Running) -> None:
    assert serving.process.poll() is None, serving.text
