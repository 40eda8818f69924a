"""Models of 9 MiB over a bad network, with a partition in mid-upload whose old connection stays half open.

Each client has a proxy of its own: 200 ms round trip, 10 Mbit/s each way, stalls of 5 s now and then. In the first
round, when a part of its update is committed, the first client's network swallows everything for 60 s and tells nobody:
its connections stay half open for good, and new ones hang until it heals. `status` is asked each second. Held if the
federation finishes with every update in and none trained twice, and no status said what was not so. `count` is the
number of federations.

    python -m tests.faults.slow_network --count 1 --seed 0
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from fedserver.server import Listening
from fedstream.tls import split_address
from tests.faults.federation import cancelled_at_end
from tests.faults.member import server_process
from tests.faults.proxy import FaultProxy, Weather
from tests.faults.results import Findings, Order, run_alone
from tests.faults.sites import ClientLog, WorkerPool, client_config, quiet_clients, start_sites, trainers
from tests.faults.status_watch import StatusWatch

PROMISE = "a slow, stalling and parted network costs time, and nothing else; `status` tells the truth all along"
_CLIENTS = 2
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """How bad it is. Spans in seconds. The lease is longer than the partition: a shorter one gives the client up."""

    model_mib: int = 9
    rounds: int = 2
    round_trip_seconds: float = 0.2
    bits_per_second: float = 10e6
    stall_seconds: float = 5.0
    stall_every_bytes: int = 12 << 20
    partition_seconds: float = 60.0
    lease_seconds: float = 150.0

    @property
    def weather(self) -> Weather:
        """For one client's proxy."""
        return Weather(
            self.round_trip_seconds / 2, self.bits_per_second / 8, self.stall_seconds, self.stall_every_bytes
        )


@dataclass(frozen=True, slots=True)
class Partition:
    """When it was, by the steady clock, and how much had been committed."""

    begin: float
    end: float
    committed_size: int


async def part_in_mid_upload(proxy: FaultProxy, watch: StatusWatch, client: str, seconds: float) -> Partition:
    """Wait until a part of the client's update is committed, then swallow everything for so long."""
    while True:
        sample = watch.latest(client)
        if sample is not None and 0 < sample.committed_size < sample.body_size:
            break
        await asyncio.sleep(0.05)
    begin = time.monotonic()
    proxy.part()
    await asyncio.sleep(seconds)
    proxy.heal()
    return Partition(begin, time.monotonic(), sample.committed_size)


async def run(order: Order, conditions: Conditions | None = None) -> Findings:
    """`order.count` federations, one after the other."""
    chosen, started = conditions or Conditions(), time.monotonic()
    found = Findings("slow_network", PROMISE)
    found.figures = {
        "models, MiB": chosen.model_mib,
        "round trip, ms; rate, Mbit/s": f"{chosen.round_trip_seconds * 1e3:.0f}; {chosen.bits_per_second / 1e6:.0f}",
    }
    for number in range(order.count):
        folder = order.folder / f"federation-{number}"
        pools = {folder: WorkerPool()}
        with quiet_clients(), trainers(pools):
            try:
                await asyncio.wait_for(_federation(folder, order.seed + number, chosen, found), _TIMEOUT_SECONDS)
            except TimeoutError:
                found.problems.append(f"not over after {_TIMEOUT_SECONDS:.0f} s; see {folder}")
            finally:
                await pools[folder].close()
    found.seconds = time.monotonic() - started
    return found


async def _federation(folder: Path, seed: int, chosen: Conditions, found: Findings) -> None:
    task = {"tensors": str(chosen.model_mib), "tensor_kib": "1024", "seconds": "0.1", "epochs": "2"}
    settings = {"rounds": chosen.rounds, "min_clients": _CLIENTS, "lease_seconds": chosen.lease_seconds}
    log, started = ClientLog(), time.monotonic()
    async with AsyncExitStack() as stack:
        listening = await stack.enter_async_context(server_process(folder, settings, task))
        watch = await stack.enter_async_context(StatusWatch.on(listening))
        proxies = await _proxies(stack, listening, chosen.weather, seed)
        configs = [
            client_config(folder, proxy.address, listening.fingerprint or "", index, _CLIENTS)
            for index, proxy in enumerate(proxies)
        ]
        sites = start_sites(configs, log)
        partition = None
        async with cancelled_at_end(*sites):
            if chosen.partition_seconds:
                coming = part_in_mid_upload(proxies[0], watch, configs[0].name, chosen.partition_seconds)
                partition = await coming
            await asyncio.wait(sites)
    found.problems += [f"{site.get_name()} ended with {site.exception()!r}" for site in sites if site.exception()]
    trained = sum(log.count("trained").values())
    if trained != _CLIENTS * chosen.rounds:
        found.problems.append(f"{trained} fine-tunes, not {_CLIENTS * chosen.rounds}")
    _figures(found, watch, partition, proxies, log, time.monotonic() - started)
    if partition is not None:
        oldest = watch.check_partition(configs[0].name, partition.begin, partition.end)
        found.figures["oldest last_seen in the partition, seconds"] = oldest
        if oldest < chosen.partition_seconds - 5:
            found.problems.append(f"last_seen grew to {oldest:.0f} s only in {chosen.partition_seconds:.0f} s")
    found.problems += watch.lies


async def _proxies(stack: AsyncExitStack, listening: Listening, weather: Weather, seed: int) -> list[FaultProxy]:
    target = split_address(listening.address)
    return [
        await stack.enter_async_context(FaultProxy.before(target, weather, seed * _CLIENTS + index))
        for index in range(_CLIENTS)
    ]


def _figures(
    found: Findings,
    watch: StatusWatch,
    partition: Partition | None,
    proxies: list[FaultProxy],
    log: ClientLog,
    seconds: float,
) -> None:
    found.figures |= {
        "seconds in all": seconds,
        "status samples": len(watch.samples),
        "longest wait for a status, seconds": watch.longest_gap_seconds,
        "stalls": sum(proxy.traffic.stalls for proxy in proxies),
        "connections": sum(proxy.traffic.connections for proxy in proxies),
        "bytes from clients": sum(proxy.traffic.up_bytes for proxy in proxies),
        "bytes to clients": sum(proxy.traffic.down_bytes for proxy in proxies),
        "uploads resumed": sum(log.count("resuming the upload").values()),
    }
    if partition is not None:
        found.figures["committed when the partition began, bytes"] = partition.committed_size


if __name__ == "__main__":
    run_alone(__doc__ or "", 1, run)
