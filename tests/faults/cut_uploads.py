"""A 100 MiB upload is cut, and cut again: how much is sent twice.

`count` uploads with one cut each, a third of them at each of: the boundaries between chunks (all of them, if `count` is
at least three times their number), a random byte inside a chunk, a random byte of the whole at full speed. Then one
upload with ten cuts at random bytes. They go from fedclient's uploader through a TCP proxy, end to end with TLS, to a
server process. Counted are the bytes of chunks that the uploader handed to gRPC beyond those of the body, which is
more than ever reached the wire. Held if no cut cost more than the window, and no committed size ever decreased.

    python -m tests.faults.cut_uploads --count 300 --seed 0
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedclient.calls import Patience
from fedclient.connection import Connection
from fedclient.requests import CHUNK_BYTES
from fedclient.upload import Terms, Upload
from fedserver.server import Listening
from fedstream import limits
from fedstream.tls import split_address
from tests.faults.member import CountingTransfer, Member, Trained, connected, server_process
from tests.faults.proxy import FaultProxy
from tests.faults.results import Findings, Order, run_alone
from tests.faults.sites import quiet_clients

PROMISE = "what a cut costs is at most the negotiated window"
TASK = {"tensors": "100", "tensor_kib": "1024"}
_MANY_CUTS = 10
_QUICK = Patience(first_seconds=0.02, longest_seconds=0.2)
_QUIET_SECONDS = 0.05
"""Nothing moved for so long: all that was sent has arrived."""


@dataclass(slots=True)
class Cut:
    """One cut: before the chunk at offset `at_chunk`, `inside` bytes into it, or `after` so many bytes on the wire."""

    at_chunk: int | None = None
    inside: int = 0
    after: int | None = None


@dataclass(slots=True)
class Sent:
    """One upload that arrived. Bytes of chunks; seconds of wall-clock time."""

    kind: str
    body_bytes: int
    sent_bytes: int
    cuts: int
    seconds: float
    decreased: bool

    @property
    def again_bytes(self) -> int:
        """What was sent twice."""
        return self.sent_bytes - self.body_bytes


@dataclass(slots=True)
class Cutter:
    """Makes the cuts of one upload, one after the other, each once."""

    proxy: FaultProxy
    cuts: list[Cut]
    committed: list[int] = field(default_factory=list)

    async def before_chunk(self, offset: int, _size: int) -> None:
        """Cut here, or see to it that the proxy will."""
        if not self.cuts or self.proxy.armed:
            return
        cut = self.cuts[0]
        if cut.after is not None:
            self.proxy.cut_after(cut.after)
        elif offset != cut.at_chunk:
            return
        else:
            await self.proxy.quiet(_QUIET_SECONDS)
            if cut.inside:
                self.proxy.cut_after(cut.inside)
            else:
                self.proxy.cut()
        self.cuts.pop(0)

    def note(self, done: int, _total: int) -> None:
        """The uploader says how much is committed."""
        self.committed.append(done)

    @property
    def decreased(self) -> bool:
        """Whether the committed size ever went back."""
        return any(later < earlier for earlier, later in zip(self.committed, self.committed[1:], strict=False))


async def send(
    connection: Connection, proxy: FaultProxy, trained: Trained, upload_id: str, kind: str, cuts: Sequence[Cut]
) -> Sent:
    """One upload with these cuts."""
    cutter, plain, started = Cutter(proxy, list(cuts)), connection.transfer, time.monotonic()
    counting = CountingTransfer(plain, cutter.before_chunk)
    connection.transfer = counting  # type: ignore[assignment]
    before = proxy.traffic.cuts
    terms = Terms(CHUNK_BYTES, limits.WINDOW_BYTES)
    try:
        await Upload(connection, trained.parcel(upload_id), terms, _QUICK, cutter.note).run()
    finally:
        connection.transfer = plain
    body = sum(entry.size_bytes for entry in trained.manifest)
    seconds = time.monotonic() - started
    return Sent(kind, body, counting.sent_bytes, proxy.traffic.cuts - before, seconds, cutter.decreased)


def plan_cuts(count: int, body_bytes: int, rng: random.Random) -> list[tuple[str, list[Cut]]]:
    """What to cut in each upload: one without, the single ones, the one with many."""
    chunk = CHUNK_BYTES
    boundaries = list(range(chunk, body_bytes, chunk))
    third = -(-count // 3)
    step = max(1, len(boundaries) // third)
    plans: list[tuple[str, list[Cut]]] = [("no cut", [])]
    plans += [("between chunks", [Cut(at_chunk=at)]) for at in boundaries[::step][:third]]
    for _ in range(third):
        at = rng.choice(boundaries)
        inside = rng.randrange(1, min(chunk, body_bytes - at))  # the last chunk is a short one
        plans.append(("inside a chunk", [Cut(at_chunk=at, inside=inside)]))
        plans.append(("at full speed", [Cut(after=rng.randrange(1, body_bytes))]))
    many = [Cut(after=rng.randrange(1, body_bytes // _MANY_CUTS)) for _ in range(_MANY_CUTS)]
    return [*plans, (f"{_MANY_CUTS} cuts", many)]


async def run(order: Order) -> Findings:
    """About `order.count` uploads with a cut, and one with ten."""
    started = time.monotonic()
    rng = random.Random(order.seed)
    settings = {"rounds": 1_000_000, "min_clients": 1, "lease_seconds": 600.0, "keep_rounds": 1}
    with quiet_clients():
        async with server_process(order.folder / "server", settings, TASK) as listening:
            sent = await _send_all(order, listening, rng)
    found = _findings(sent)
    found.seconds = time.monotonic() - started
    return found


async def _send_all(order: Order, listening: Listening, rng: random.Random) -> list[Sent]:
    sent: list[Sent] = []
    async with (
        Member.join(listening, "site-0", TASK) as member,
        FaultProxy.before(split_address(listening.address)) as proxy,
        connected(order.folder / "client", proxy.address, listening.fingerprint) as connection,
    ):
        # Two sets of weights in turn: what the last round made is close to the one, and differs from the other.
        both = [Trained.make(order.folder / f"update-{seed}.safetensors", member.schema, seed) for seed in (1, 2)]
        body_bytes = member.schema.size_bytes
        for number, (kind, cuts) in enumerate(plan_cuts(order.count, body_bytes, rng)):
            offer = await member.agree()
            sent.append(await send(connection, proxy, both[number % 2], offer.upload_id, kind, cuts))
            print(".", end="", file=sys.stderr, flush=True)
    return sent


def _findings(sent: Sequence[Sent]) -> Findings:
    found = Findings("cut_uploads", PROMISE)
    found.figures = {"body, bytes": sent[0].body_bytes, "window, bytes": limits.WINDOW_BYTES}
    for kind in dict.fromkeys(one.kind for one in sent):
        of_kind = [one for one in sent if one.kind == kind]
        again = [one.again_bytes for one in of_kind]
        found.figures[f"{kind}: uploads, cuts"] = f"{len(of_kind)}, {sum(one.cuts for one in of_kind)}"
        found.figures[f"{kind}: bytes sent again"] = f"median {statistics.median(again):,.0f}, most {max(again):,}"
        found.figures[f"{kind}: seconds, median"] = statistics.median(one.seconds for one in of_kind)
    for number, one in enumerate(sent):
        if one.again_bytes > one.cuts * limits.WINDOW_BYTES:
            found.problems.append(f"upload {number} ({one.kind}) sent {one.again_bytes} bytes again in {one.cuts} cuts")
        if one.decreased:
            found.problems.append(f"upload {number} ({one.kind}): the committed size decreased")
        expected = {"no cut": 0, f"{_MANY_CUTS} cuts": _MANY_CUTS}.get(one.kind, 1)
        if one.cuts != expected:
            found.problems.append(f"upload {number} ({one.kind}) was cut {one.cuts} times, not {expected}")
    return found


if __name__ == "__main__":
    run_alone(__doc__ or "", 9, run)
