"""The server and its clients on hosts of their own, and the cable between them pulled out in mid-upload.

Hosts are network namespaces of Linux: real interfaces with real TCP between them, 200 ms and 10 Mbit/s apart where the
kernel can do so, and a real partition: one end's interface is down for 60 s, so that packets vanish and nobody is told.
The same is held as in `slow_network`. Skipped where there are no namespaces or no right to make them. `count` is the
number of federations.

    python -m tests.faults.hosts --count 1
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedserver.server import Listening
from tests.faults.kill_clients import site_command
from tests.faults.member import server_process
from tests.faults.phases import read_event
from tests.faults.results import Findings, Order, run_alone
from tests.faults.sites import client_config
from tests.faults.status_watch import StatusWatch

PROMISE = "the same between hosts, with the cable out for a minute in mid-upload"
_CLIENTS = 2
_SERVER_ADDRESS, _CLIENT_ADDRESS, _PORT = "10.213.77.1", "10.213.77.2", 8443
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Hosts:
    """Two namespaces with a cable between them. `shaped` says whether it is a slow one."""

    server: str
    clients: str
    shaped: bool

    @classmethod
    @contextmanager
    def up(cls) -> Iterator[Hosts]:
        """Two hosts that exist as long as the block runs.

        Raises:
            OSError, subprocess.CalledProcessError: they cannot be had here.
        """
        server, clients = f"fs-server-{os.getpid()}", f"fs-clients-{os.getpid()}"
        try:
            for name in (server, clients):
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", server, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", clients)
            shaped = True
            for name, address in ((server, _SERVER_ADDRESS), (clients, _CLIENT_ADDRESS)):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
                _ip("-n", name, "link", "set", "cable", "up")
                shaped = shaped and _shape(name)
            yield cls(server, clients, shaped)
        finally:
            for name in (server, clients):
                with contextlib.suppress(OSError, subprocess.CalledProcessError):
                    _ip("netns", "delete", name)

    @property
    def on_server(self) -> list[str]:
        """Words before a command that runs on the server's host."""
        return ["ip", "netns", "exec", self.server]

    @property
    def on_clients(self) -> list[str]:
        """Words before a command that runs on the clients' host."""
        return ["ip", "netns", "exec", self.clients]

    def part(self) -> None:
        """Pull the cable out."""
        _ip("-n", self.clients, "link", "set", "cable", "down")

    def heal(self) -> None:
        """Put it in again."""
        _ip("-n", self.clients, "link", "set", "cable", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _shape(name: str) -> bool:
    command = ["tc", "-n", name, "qdisc", "add", "dev", "cable", "root", "netem", "delay", "100ms", "rate", "10mbit"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


async def run(order: Order, partition_seconds: float = 60.0) -> Findings:
    """`order.count` federations, or a reason why not."""
    found, started = Findings("hosts", PROMISE), time.monotonic()
    if shutil.which("ip") is None:
        found.skipped = "there is no `ip` command here (package iproute2)"
        return found
    for number in range(order.count):
        try:
            with Hosts.up() as hosts:
                await asyncio.wait_for(
                    _federation(hosts, order.folder / f"federation-{number}", partition_seconds, found),
                    _TIMEOUT_SECONDS,
                )
        except (OSError, subprocess.CalledProcessError) as error:
            said = str(getattr(error, "stderr", "") or error).strip()
            found.skipped = f"network namespaces cannot be made here: {said}"
        except TimeoutError:
            found.problems.append(f"not over after {_TIMEOUT_SECONDS:.0f} s")
    found.seconds = time.monotonic() - started
    return found


async def _federation(hosts: Hosts, folder: Path, partition_seconds: float, found: Findings) -> None:
    # Without a slow cable, an update must be large to be cut in its middle.
    mib = "9" if hosts.shaped else "400"
    task = {"tensors": mib, "tensor_kib": "1024", "epochs": "1"}
    started = time.monotonic()
    settings = {"rounds": 1, "min_clients": _CLIENTS, "lease_seconds": 150.0, "listen": f"{_SERVER_ADDRESS}:{_PORT}"}
    server = server_process(folder, settings, task, hosts.on_server)
    async with server as listening, StatusWatch.on(listening) as watch:
        sites = [await _site(hosts, folder, listening, index) for index in range(_CLIENTS)]
        try:
            begin = await _until_mid_upload(watch, "site-0")
            hosts.part()
            await asyncio.sleep(partition_seconds)
            hosts.heal()
            end = time.monotonic()
            statuses = await asyncio.gather(*(site.wait() for site in sites))
        finally:
            for site in sites:
                if site.returncode is None:
                    site.kill()
                    await site.wait()
    found.problems += [f"site-{index} ended with status {status}" for index, status in enumerate(statuses) if status]
    trained = [_count(folder / f"site-{index}.log", "trained") for index in range(_CLIENTS)]
    found.problems += [f"site-{index} trained {count} times" for index, count in enumerate(trained) if count != 1]
    oldest = max(watch.check_partition(f"site-{index}", begin, end) for index in range(_CLIENTS))
    found.problems += watch.lies
    found.figures |= {
        "model, MiB": mib,
        "slow cable": "200 ms, 10 Mbit/s" if hosts.shaped else "no: this kernel has no netem",
        "seconds in all": time.monotonic() - started,
        "partition, seconds": partition_seconds,
        "oldest last_seen in it, seconds": oldest,
        "uploads resumed": sum(
            _count(folder / f"site-{index}.log", "resuming the upload") for index in range(_CLIENTS)
        ),
        "status samples": len(watch.samples),
    }


async def _until_mid_upload(watch: StatusWatch, client: str) -> float:
    while True:
        sample = watch.latest(client)
        if sample is not None and 0 < sample.committed_size < sample.body_size:
            return time.monotonic()
        await asyncio.sleep(0.02)


async def _site(hosts: Hosts, folder: Path, listening: Listening, index: int) -> asyncio.subprocess.Process:
    config = client_config(folder, listening.address, listening.fingerprint or "", index, _CLIENTS)
    with (folder / f"site-{index}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *hosts.on_clients, *site_command(config), stderr=log, stdout=log, stdin=asyncio.subprocess.DEVNULL
        )


def _count(log: Path, event: str) -> int:
    return sum(read_event(line).get("event") == event for line in log.read_bytes().splitlines())


if __name__ == "__main__":
    run_alone(__doc__ or "", 1, run)
