"""The client of docs/write-a-client.md for the task `linear`; its steps have the names of the pseudo-code.

It uses the generated stubs and nothing else of this project. Its small methods are there to be broken, one at a time,
by `tests.support.minimal.wrong`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import queue
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import grpc

from fedstream.v1 import common_pb2, negotiation_pb2, negotiation_pb2_grpc, transfer_pb2, transfer_pb2_grpc
from tests.support.minimal.messages import (
    MEANING,
    RIVAL_SECONDS,
    SCHEMA,
    DeclinedError,
    Refusal,
    digest_of,
    refusal_of,
    schema_text,
)
from tests.support.minimal.work import Work


class Client:
    """One site, from its start to the federation's end."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.kept = Path(options.state) / "update.npz"
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        channel = self.channel()
        self.negotiation = negotiation_pb2_grpc.NegotiationServiceStub(channel)
        self.transfer = transfer_pb2_grpc.TransferServiceStub(channel)
        self.tensors: dict[bytes, bytes] = {}
        self.work: Work | None = None
        self.terms = negotiation_pb2.Welcome()
        self.lease = 30.0
        self.is_over = False
        self.last_superseded = -RIVAL_SECONDS
        self.outbox: queue.Queue[Any] = queue.Queue()

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.options.server, [("grpc.max_reconnect_backoff_ms", 2000)])

    # One session after another

    def run(self) -> int:
        tries = 0
        while True:
            begun = time.monotonic()
            try:
                self.session()
            except DeclinedError as error:
                print(f"declined: {error}")
                if not self.returns_when_declined():
                    return 4
            except grpc.RpcError as error:
                decided = refusal_of(error)
                if decided is not None and not self.may_return(decided):
                    print(f"refused: {decided.reason}")
                    return 1
                self.wait(decided)
            if self.is_over:
                return 0
            if self.was_welcome:
                tries = 0
            print(f"session over after {time.monotonic() - begun:.1f} s; coming back")
            time.sleep(self.pause(tries))
            tries += 1

    def returns_when_declined(self) -> bool:
        return False

    def may_return(self, decided: Refusal) -> bool:
        if decided.reason == "SUPERSEDED":
            before, self.last_superseded = self.last_superseded, time.monotonic()
            return time.monotonic() - before >= RIVAL_SECONDS
        return decided.reason == "LIMIT_EXCEEDED"

    def wait(self, decided: Refusal | None) -> None:
        if decided is not None:
            time.sleep(decided.delay)

    def pause(self, tries: int) -> float:
        return min(0.5 * 2**tries, 5) + 0.2 * random.random()

    def hello(self) -> negotiation_pb2.Hello:
        return negotiation_pb2.Hello(
            protocol=common_pb2.ProtocolRange(min=1, max=1),
            client_name=self.options.name,
            schema_sha256=hashlib.sha256(schema_text()).digest(),
            meaning=MEANING,
            num_examples=48,
            software="minimal 0.1",
        )

    def session(self) -> None:
        self.was_welcome = False
        self.outbox = queue.Queue()
        self.say(hello=self.hello())
        stream = self.call_negotiate(iter(self.outbox.get, None))
        ticking = threading.Thread(target=self.tick, args=(self.outbox,), daemon=True)
        ticking.start()
        try:
            for message in stream:
                self.on_message(message)
        finally:
            self.outbox.put(None)

    def call_negotiate(self, messages: Iterator[Any]) -> Any:
        return self.negotiation.Negotiate(messages)

    def say(self, **kind: Any) -> None:
        self.outbox.put(negotiation_pb2.NegotiateRequest(**kind))

    def tick(self, outbox: queue.Queue[Any]) -> None:
        """Progress in each third of a lease while at work."""
        while outbox is self.outbox:
            work = self.work
            if work is not None and work.at_work:
                self.tell_progress(work)
            time.sleep(min(1.0, self.lease / 3))

    def tell_progress(self, work: Work) -> None:
        self.say(
            progress=negotiation_pb2.Progress(
                offer_id=work.offer.offer_id, phase=negotiation_pb2.PHASE_TRAINING, fraction=0.5
            )
        )

    def on_message(self, message: negotiation_pb2.NegotiateResponse) -> None:
        kind = message.WhichOneof("kind")
        handler = getattr(self, f"on_{kind}", None)
        if handler is not None:
            handler(getattr(message, kind))

    def on_welcome(self, welcome: Any) -> None:
        self.terms, self.was_welcome = welcome, True

    def on_declined(self, declined: Any) -> None:
        raise DeclinedError(declined.message)

    def on_schema_query(self, _query: Any) -> None:
        specs = [
            common_pb2.TensorSpec(
                name=name,
                dtype=common_pb2.DATA_TYPE_FLOAT32,
                shape=shape,
                trainable=True,
                role=common_pb2.TENSOR_ROLE_WEIGHT,
            )
            for name, shape in SCHEMA
        ]
        self.say(schema_part=negotiation_pb2.SchemaPart(tensors=specs, last=True))

    def on_offer(self, offer: Any) -> None:
        if self.work is None or self.work.offer.offer_id != offer.offer_id:
            self.stop_work()
            self.work = self.new_work(offer)
        self.answer_offer(offer)

    def answer_offer(self, offer: Any) -> None:
        self.say(accept=negotiation_pb2.Acceptance(offer_id=offer.offer_id))

    def new_work(self, offer: Any) -> Work:
        return Work(self, offer)

    def on_confirm(self, confirm: Any) -> None:
        self.lease = confirm.lease.seconds + confirm.lease.nanos / 1e9
        if self.work is not None and self.work.offer.offer_id == confirm.offer_id:
            self.work.start(confirm.plan)

    def on_cancel(self, cancel: Any) -> None:
        if self.work is not None and self.work.offer.offer_id == cancel.offer_id:
            self.stop_work()

    def on_withdraw(self, withdraw: Any) -> None:
        self.on_cancel(withdraw)

    def on_lease_renewal(self, renewal: Any) -> None:
        self.lease = renewal.lease.seconds + renewal.lease.nanos / 1e9

    def on_federation_outcome(self, outcome: Any) -> None:
        self.stop_work()
        self.is_over = True
        tensors = self.fetch(outcome.best_model.model_digest, lambda: None)
        Path(self.options.out).mkdir(parents=True, exist_ok=True)
        (Path(self.options.out) / "model.bin").write_bytes(b"".join(tensors))
        self.outbox.put(None)

    def stop_work(self) -> None:
        if self.work is not None:
            self.work.stop()
            self.work = None

    # Downloading

    def fetch(self, digest: common_pb2.Digest, check: Any) -> list[bytes]:
        """The tensors of a model, asked for again until they are right; `check` raises when nobody wants them."""
        kept, tries = bytearray(), 0
        while True:
            check()
            try:
                entries = self.manifest(digest)
                lacking = self.lacking(entries)
                if lacking:
                    self.read(digest, lacking, sum(entries[i].digest.size_bytes for i in lacking), kept)
                    self.take(entries, lacking, kept)
                return [self.tensors[entry.digest.sha256] for entry in entries]
            except (grpc.RpcError, ValueError) as error:
                decided = refusal_of(error) if isinstance(error, grpc.RpcError) else None
                if decided is not None and decided.reason not in {"LIMIT_EXCEEDED", "WRONG_OFFSET"}:
                    raise decided from error
                self.wait(decided)
                time.sleep(self.pause(tries))
                tries += 1

    def lacking(self, entries: list[Any]) -> list[int]:
        return [index for index, entry in enumerate(entries) if entry.digest.sha256 not in self.tensors]

    def manifest(self, digest: common_pb2.Digest) -> list[Any]:
        parts = self.transfer.GetManifest(transfer_pb2.GetManifestRequest(model_sha256=digest.sha256))
        entries = [entry for answer in parts for entry in answer.part.entries]
        self.check_manifest(entries, digest)
        return entries

    def check_manifest(self, entries: list[Any], digest: common_pb2.Digest) -> None:
        text = "fedstream model v1\n" + "".join(
            f"{entry.spec.name}\tF32\t{','.join(map(str, entry.spec.shape))}\t{entry.digest.sha256.hex()}\n"
            for entry in entries
        )
        if digest_of(text.encode()) != digest:
            raise ValueError("another model came")

    def read(self, digest: common_pb2.Digest, lacking: list[int], size: int, kept: bytearray) -> None:
        """Go on at what is kept, until all is there."""
        request = transfer_pb2.ReadChunksRequest(
            model_sha256=digest.sha256,
            tensors=lacking,
            read_offset=len(kept),
            max_chunk_bytes=self.terms.max_chunk_bytes,
        )
        for answer in self.transfer.ReadChunks(request):
            self.check_chunk(answer.chunk, len(kept))
            kept += answer.chunk.data
        if len(kept) != size:
            raise ValueError("the stream ended early")

    def check_chunk(self, chunk: Any, have: int) -> None:
        if google_crc32c.value(chunk.data) != chunk.crc32c or chunk.write_offset != have:
            raise ValueError("a chunk is damaged")

    def take(self, entries: list[Any], lacking: list[int], kept: bytearray) -> None:
        start, found = 0, {}
        for index in lacking:
            want = entries[index].digest
            data = bytes(kept[start : start + want.size_bytes])
            start += want.size_bytes
            if self.is_damaged(data, want):
                kept.clear()
                raise ValueError("a tensor is damaged")
            found[want.sha256] = data
        self.tensors |= found

    def is_damaged(self, data: bytes, want: common_pb2.Digest) -> bool:
        return digest_of(data) != want


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("server", "name", "data", "state", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--wrong", default="")
    return parser.parse_args()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(Client(read_options()).run())
