"""What the minimal client does for an offer: it trains, keeps what it trained, and uploads it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import grpc
import numpy as np

from fedstream.v1 import common_pb2, negotiation_pb2, transfer_pb2
from tests.support.minimal.messages import (
    RETRY_AT_STATUS,
    SCHEMA,
    UNWANTED,
    Refusal,
    StoppedError,
    digest_of,
    model_digest,
    refusal_of,
)

if TYPE_CHECKING:
    from tests.support.minimal.client import Client


class Work:
    """What is done for one offer, in a thread of its own."""

    def __init__(self, client: Client, offer: Any) -> None:
        self.client, self.offer = client, offer
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None
        self.delivered = False

    @property
    def at_work(self) -> bool:
        return self.thread is not None and self.thread.is_alive() and not self.stopped.is_set()

    def start(self, plan: Any) -> None:
        if self.at_work:
            return
        self.thread = threading.Thread(target=self.run, args=(plan,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.stopped.set()

    def check(self) -> None:
        if self.stopped.is_set():
            raise StoppedError

    def run(self, plan: Any) -> None:
        try:
            base = self.client.fetch(self.offer.base_model.model_digest, self.check)
            self.upload(self.load_kept() or self.train(base, plan))
            self.delivered = True
        except StoppedError:
            return
        except Refusal as refusal:
            if refusal.reason not in UNWANTED:
                self.fail(refusal.reason)
        except ValueError as error:
            self.fail(str(error))

    def fail(self, reason: str) -> None:
        self.client.say(failure=negotiation_pb2.Failure(offer_id=self.offer.offer_id, reason=reason))

    # Training

    def train(self, base: list[bytes], plan: Any) -> list[bytes]:
        weights, bias = (np.frombuffer(data, np.float32).copy() for data in base)
        with np.load(Path(self.client.options.data) / "train.npz") as data:
            x, y = data["x"].astype(np.float32), data["y"].astype(np.float32)
        for _ in range(plan.epochs):
            self.check()
            error = 1 / (1 + np.exp(-(x @ weights + bias[0]))) - y
            weights -= np.float32(plan.learning_rate) * (x.T @ error) / len(y)
            bias -= np.float32(plan.learning_rate) * error.mean()
        update = [weights.tobytes(), bias.tobytes()]
        self.keep(update)
        return update

    def keep(self, update: list[bytes]) -> None:
        path = self.client.kept
        with path.with_suffix(".new").open("wb") as file:
            np.savez(
                file, offer=self.offer.offer_id, **{str(i): np.frombuffer(u, np.uint8) for i, u in enumerate(update)}
            )
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".new").rename(path)

    def load_kept(self) -> list[bytes] | None:
        if not self.client.kept.is_file():
            return None
        with np.load(self.client.kept) as kept:
            if str(kept["offer"]) != self.offer.offer_id:
                return None
            return [kept[str(index)].tobytes() for index in range(len(SCHEMA))]

    # Uploading

    def upload(self, update: list[bytes]) -> None:
        body: bytes | None = None
        committed, tries, restarts = 0, 0, 0
        while True:
            self.check()
            try:
                if body is not None:
                    status = self.status()
                    if status is None:
                        body = None
                    elif status < 0:
                        return
                    else:
                        committed = status
                if body is None:
                    body, committed = self.put_manifest(update)
                self.write(body, self.first_offset(committed))
                self.finish()
                return
            except grpc.RpcError as error:
                self.check()
                decided = refusal_of(error)
                if decided is not None and decided.reason in {"MANIFEST_REQUIRED", "DIGEST_MISMATCH"} and restarts < 3:
                    restarts += 1
                    body = None
                elif decided is not None and not self.may_retry(decided):
                    raise decided from error
                self.client.wait(decided)
                time.sleep(self.client.pause(tries))
                tries += 1

    def may_retry(self, decided: Refusal) -> bool:
        return decided.reason in RETRY_AT_STATUS or decided.reason == "LIMIT_EXCEEDED"

    def first_offset(self, committed: int) -> int:
        return committed

    def status(self) -> int | None:
        """Where to go on; `None` to put the manifest, -1 if it is in."""
        request = transfer_pb2.GetUploadStatusRequest(upload_id=self.offer.upload_id)
        status = self.client.transfer.GetUploadStatus(request, timeout=60)
        self.hear_window(status.window_bytes)
        if status.state in {transfer_pb2.UPLOAD_STATE_ADMITTED, transfer_pb2.UPLOAD_STATE_QUARANTINED}:
            return -1
        if status.state == transfer_pb2.UPLOAD_STATE_CLOSED:
            raise Refusal("ROUND_CLOSED", 0)
        return status.committed_size if status.state == transfer_pb2.UPLOAD_STATE_OPEN else None

    def hear_window(self, window_bytes: int) -> None:
        self.window = window_bytes or self.client.terms.window_bytes

    def header(self, update: list[bytes]) -> transfer_pb2.UpdateHeader:
        return transfer_pb2.UpdateHeader(
            upload_id=self.offer.upload_id,
            num_tensors=len(update),
            model_digest=model_digest(update),
            num_examples=48,
            epochs=1,
        )

    def entry(self, index: int, data: bytes) -> transfer_pb2.TensorEntry:
        name, shape = SCHEMA[index]
        spec = common_pb2.TensorSpec(name=name, dtype=common_pb2.DATA_TYPE_FLOAT32, shape=shape)
        return transfer_pb2.TensorEntry(
            spec=spec, digest=digest_of(data), encoding=common_pb2.ENCODING_RAW, encoded_size_bytes=len(data)
        )

    def put_manifest(self, update: list[bytes]) -> tuple[bytes, int]:
        entries = [self.entry(index, data) for index, data in enumerate(update)]
        messages = [
            transfer_pb2.PutManifestRequest(header=self.header(update)),
            transfer_pb2.PutManifestRequest(part=transfer_pb2.ManifestPart(entries=entries)),
        ]
        answer = self.client.transfer.PutManifest(iter(messages), timeout=600)
        self.hear_window(answer.window_bytes)
        missing = list(answer.missing_tensors)
        if missing != sorted(set(missing)) or any(index >= len(update) for index in missing):
            raise ValueError("the server lacks tensors that there are not")
        return b"".join(update[index] for index in missing), answer.committed_size

    def write(self, body: bytes, start: int) -> None:
        if start >= len(body):
            return
        self.committed, self.heard = start, threading.Condition()
        try:
            for answer in self.client.transfer.WriteChunks(self.chunks(body, start)):
                with self.heard:
                    self.committed = answer.committed_size
                    self.heard.notify_all()
        finally:
            with self.heard:
                self.committed = len(body)  # whoever waits for the window is not to wait for ever
                self.heard.notify_all()

    def chunks(self, body: bytes, start: int) -> Iterator[transfer_pb2.WriteChunksRequest]:
        length, window = self.chunk_bytes(), self.window
        for offset in range(start, len(body), length):
            data = body[offset : offset + length]
            with self.heard:
                while not self.fits(offset + len(data), window):
                    self.heard.wait(1)
            chunk = transfer_pb2.Chunk(write_offset=offset, crc32c=self.crc(data), data=data)
            yield transfer_pb2.WriteChunksRequest(upload_id=self.offer.upload_id, chunk=chunk)

    def chunk_bytes(self) -> int:
        return int(min(self.client.terms.max_chunk_bytes, self.window // 2))

    def fits(self, end: int, window: int) -> bool:
        return end - self.committed <= window

    def crc(self, data: bytes) -> int:
        return google_crc32c.value(data)

    def finish(self) -> None:
        request = transfer_pb2.FinishUploadRequest(upload_id=self.offer.upload_id)
        self.client.transfer.FinishUpload(request, timeout=600)
