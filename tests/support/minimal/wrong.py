"""The minimal client with one rule broken: what `fedserver conformance` must notice, each by its rule."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from fedstream.v1 import common_pb2, negotiation_pb2, transfer_pb2
from tests.support.minimal.client import Client, read_options
from tests.support.minimal.messages import Refusal, model_digest, refusal_of
from tests.support.minimal.work import Work


@dataclass(frozen=True, slots=True)
class Wrong:
    """A client that breaks `rule`, and a scene in which that shows."""

    rule: str
    scene: str
    client: type[Client]


def _with_work(kind: type[Work]) -> type[Client]:
    class WithWork(Client):
        def new_work(self, offer: Any) -> Work:
            return kind(self, offer)

    return WithWork


class _SpeaksFirst(Client):
    def hello(self) -> Any:
        self.say(leave=negotiation_pb2.Leave(reason="before hello"))
        return super().hello()


class _NoExamples(Client):
    def hello(self) -> Any:
        hello = super().hello()
        hello.num_examples = 0
        return hello


class _OtherSchema(Client):
    def hello(self) -> Any:
        hello = super().hello()
        hello.schema_sha256 = bytes(32)
        return hello


class _OtherClasses(Client):
    def hello(self) -> Any:
        hello = super().hello()
        hello.meaning.class_names[:] = ["yes", "no"]
        return hello


class _Deadline(Client):
    def call_negotiate(self, messages: Iterator[Any]) -> Any:
        return self.negotiation.Negotiate(messages, timeout=300)


class _ComesBackDeclined(Client):
    def returns_when_declined(self) -> bool:
        return True


class _Hasty(Client):
    def pause(self, tries: int) -> float:
        return 0.02


class _Rival(Client):
    def may_return(self, decided: Refusal) -> bool:
        return decided.reason == "SUPERSEDED" or super().may_return(decided)


class _NeverWaits(Client):
    def wait(self, decided: Refusal | None) -> None:
        return


class _ReturnsAlways(Client):
    def may_return(self, decided: Refusal) -> bool:
        return True


class _OnlyPartOfSchema(Client):
    def on_schema_query(self, query: Any) -> None:
        spec = common_pb2.TensorSpec(name="weights", dtype=common_pb2.DATA_TYPE_FLOAT32, shape=[10], trainable=True)
        self.say(schema_part=negotiation_pb2.SchemaPart(tensors=[spec], last=True))


class _StopsAtUnknown(Client):
    def on_message(self, message: Any) -> None:
        if message.WhichOneof("kind") is None:
            raise SystemExit("the server sent a message that is not known")
        super().on_message(message)


class _SilentOnOffers(Client):
    def answer_offer(self, offer: Any) -> None:
        return


class _AnswersOnce(Client):
    def answer_offer(self, offer: Any) -> None:
        if self.work is not None and self.work.thread is None:
            super().answer_offer(offer)


class _Silent(Client):
    def tell_progress(self, work: Work) -> None:
        return


class _MoreThanWhole(Client):
    def tell_progress(self, work: Work) -> None:
        self.say(progress=negotiation_pb2.Progress(offer_id=work.offer.offer_id, fraction=150))


class _IgnoresCancel(Client):
    def on_cancel(self, cancel: Any) -> None:
        return


class _KeepsOldWork(Client):
    def stop_work(self) -> None:
        self.work = None


class _ConnectsAfterTheEnd(Client):
    def on_federation_outcome(self, outcome: Any) -> None:
        super().on_federation_outcome(outcome)
        self.is_over = False


class _TrainsOnAnOldModel(Client):
    first: list[bytes] | None = None

    def fetch(self, digest: common_pb2.Digest, check: Any) -> list[bytes]:
        self.first = self.first or super().fetch(digest, check)
        return self.first


class _AsksForAll(Client):
    def lacking(self, entries: list[Any]) -> list[int]:
        found = super().lacking(entries)
        if not found:
            list(self.transfer.ReadChunks(transfer_pb2.ReadChunksRequest(model_sha256=self.base_sha256)))
        return found

    def manifest(self, digest: common_pb2.Digest) -> list[Any]:
        self.base_sha256 = digest.sha256
        return super().manifest(digest)


class _Disordered(Client):
    def lacking(self, entries: list[Any]) -> list[int]:
        return super().lacking(entries)[::-1]


class _TrustsChunks(Client):
    def check_chunk(self, chunk: Any, have: int) -> None:
        return

    def is_damaged(self, data: bytes, want: Any) -> bool:
        return False


class _TrustsManifests(Client):
    def check_manifest(self, entries: list[Any], digest: Any) -> None:
        return

    def is_damaged(self, data: bytes, want: Any) -> bool:
        return False


class _NoCrc(Work):
    def crc(self, data: bytes) -> int:
        return 0


class _FromTheStart(Work):
    def first_offset(self, committed: int) -> int:
        return 0


class _FromTheStartBehindAnEmptyChunk(_FromTheStart):
    def chunks(self, body: bytes, start: int) -> Iterator[transfer_pb2.WriteChunksRequest]:
        empty = transfer_pb2.Chunk(write_offset=start)
        yield transfer_pb2.WriteChunksRequest(upload_id=self.offer.upload_id, chunk=empty)
        yield from super().chunks(body, start)


class _AnswersConfirm(Client):
    def on_confirm(self, confirm: Any) -> None:
        super().on_confirm(confirm)
        self.say(accept=negotiation_pb2.Acceptance(offer_id=confirm.offer_id))


class _NoWindow(Work):
    def fits(self, end: int, window: int) -> bool:
        return True


class _SessionWindow(Work):
    def hear_window(self, window_bytes: int) -> None:
        self.window = self.client.terms.window_bytes


class _Stingy(Work):
    """Waits for each chunk's answer, which a server does not owe."""

    def chunk_bytes(self) -> int:
        return 2

    def fits(self, end: int, window: int) -> bool:
        return end - self.committed <= self.chunk_bytes()


class _LargeChunks(Work):
    def chunk_bytes(self) -> int:
        return 6


class _NoStatus(Work):
    def status(self) -> int | None:
        return None


class _NoFinish(Work):
    def finish(self) -> None:
        return


class _TrainsAgain(Work):
    """As one that keeps nothing and draws its own random numbers."""

    def load_kept(self) -> list[bytes] | None:
        return None

    def train(self, base: list[bytes], plan: Any) -> list[bytes]:
        update = super().train(base, plan)
        drawn = np.frombuffer(update[0], np.float32) + np.float32(time.time() % 1)
        return [drawn.astype(np.float32).tobytes(), update[1]]


class _NoConfirm(Client):
    def on_offer(self, offer: Any) -> None:
        super().on_offer(offer)
        assert self.work is not None
        self.work.start(offer.plan)


class _WrongDigest(Work):
    def header(self, update: list[bytes]) -> Any:
        header = super().header(update)
        header.model_digest.CopyFrom(model_digest([update[0], bytes(4)]))
        return header


class _OtherBytes(Work):
    def put_manifest(self, update: list[bytes]) -> tuple[bytes, int]:
        body, committed = super().put_manifest(update)
        return body[:-1] + bytes([body[-1] ^ 1]), committed


class _TooManyExamples(Work):
    def header(self, update: list[bytes]) -> Any:
        header = super().header(update)
        header.num_examples = 1_000_000
        return header


class _UnlistedEncoding(Work):
    def entry(self, index: int, data: bytes) -> Any:
        entry = super().entry(index, data)
        entry.encoding = common_pb2.ENCODING_BFLOAT16
        return entry


class _Stubborn(Work):
    """Tries again whatever the server said, also after FAILED_PRECONDITION."""

    def may_retry(self, decided: Refusal) -> bool:
        return True


class _Resigned(Work):
    """Takes an error of the network for the server's word."""

    def upload(self, update: list[bytes]) -> None:
        try:
            body, committed = self.put_manifest(update)
            self.write(body, committed)
            self.finish()
        except grpc.RpcError as error:
            raise Refusal("INTERNAL", 0) if refusal_of(error) is None else ValueError("refused") from error


WRONG = {
    "says something before hello": Wrong("R-HEL-1", "three rounds", _SpeaksFirst),
    "has no examples": Wrong("R-HEL-4", "three rounds", _NoExamples),
    "has another schema": Wrong("R-SCH-2", "three rounds", _OtherSchema),
    "has its classes in another order": Wrong("R-SCH-5", "three rounds", _OtherClasses),
    "puts a deadline on the negotiation": Wrong("R-TIM-4", "three rounds", _Deadline),
    "comes back after it was declined": Wrong("R-HEL-7", "declined", _ComesBackDeclined),
    "comes back at once": Wrong("R-TIM-5", "cut off four times", _Hasty),
    "comes back whenever it is superseded": Wrong("R-HEL-9", "superseded twice", _Rival),
    "does not wait as long as it was told": Wrong("R-TIM-6", "LIMIT_EXCEEDED from Negotiate", _NeverWaits),
    "comes back after PERMISSION_DENIED": Wrong("R-ERR-3", "PERMISSION_DENIED", _ReturnsAlways),
    "sends a part of its schema": Wrong("R-HEL-6", "asked for the schema", _OnlyPartOfSchema),
    "stops at what it does not know": Wrong("R-EVO-2", "unknown fields", _StopsAtUnknown),
    "does not answer offers": Wrong("R-RND-1", "three rounds", _SilentOnOffers),
    "answers an offer only once": Wrong("R-RND-4", "cut off after confirm", _AnswersOnce),
    "gives no sign of life": Wrong("R-RND-10", "a short lease", _Silent),
    "has done 15,000 per cent": Wrong("R-RND-12", "a short lease", _MoreThanWhole),
    "ignores cancel": Wrong("R-RND-6", "cancelled while", _IgnoresCancel),
    "finishes what another offer replaced": Wrong("R-RND-3", "another offer while it downloads", _KeepsOldWork),
    "begins before confirm": Wrong("R-RND-2", "withdrawn after accepting", _NoConfirm),
    "trains on the model that it had": Wrong("R-RND-2", "three rounds", _TrainsOnAnOldModel),
    "connects after the end": Wrong("R-RND-9", "the federation is over", _ConnectsAfterTheEnd),
    "asks for all where it lacks none": Wrong("R-DL-2", "three rounds", _AsksForAll),
    "asks for tensors in disorder": Wrong("R-DL-2", "three rounds", _Disordered),
    "does not look at what it downloads": Wrong("R-DL-3", "a download with other bytes", _TrustsChunks),
    "takes the manifest of another model": Wrong("R-DL-1", "the manifest of another model", _TrustsManifests),
    "computes no crc32c": Wrong("R-CH-2", "three rounds", _with_work(_NoCrc)),
    "begins at 0 after a cut": Wrong("R-UP-9", "cut after one chunk", _with_work(_FromTheStart)),
    "begins at 0 after a cut, behind an empty chunk": Wrong(
        "R-UP-9", "cut after one chunk", _with_work(_FromTheStartBehindAnEmptyChunk)
    ),
    "answers a confirm": Wrong("R-RND-1", "confirmed twice", _AnswersConfirm),
    "sends without regard to the window": Wrong("R-UP-9", "three rounds", _with_work(_NoWindow)),
    "goes by the session's window where the upload has a smaller one": Wrong(
        "R-UP-9", "three rounds", _with_work(_SessionWindow)
    ),
    "waits for each chunk": Wrong("R-UP-11", "three rounds", _with_work(_Stingy)),
    "sends larger chunks than agreed": Wrong("R-CH-1", "three rounds", _with_work(_LargeChunks)),
    "does not ask for the status after a cut": Wrong("R-UP-17", "cut after one chunk", _with_work(_NoStatus)),
    "does not finish": Wrong("R-UP-14", "three rounds", _with_work(_NoFinish)),
    "trains again after it was killed": Wrong("R-RND-5", "killed in the middle", _with_work(_TrainsAgain)),
    "gives another model's digest": Wrong("R-MOD-1", "three rounds", _with_work(_WrongDigest)),
    "sends other bytes than its digests say": Wrong("R-UP-6", "three rounds", _with_work(_OtherBytes)),
    "claims a million examples": Wrong("R-UP-3", "three rounds", _with_work(_TooManyExamples)),
    "uses an encoding that was not listed": Wrong("R-ENC-1", "three rounds", _with_work(_UnlistedEncoding)),
    "tries again after ROUND_CLOSED": Wrong("R-ERR-3", "ROUND_CLOSED from PutManifest", _with_work(_Stubborn)),
    "gives up at an error of the network": Wrong("R-ERR-2", "INTERNAL from WriteChunks", _with_work(_Resigned)),
}
"""By what each does."""


if __name__ == "__main__":
    options = read_options()
    raise SystemExit(WRONG[options.wrong].client(options).run())
