"""Weights in and out of a conformance server: honest but for the faults of a scene, and watching every message."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import google_crc32c

from fedserver.conformance.faults import Damage, Fault, Refused, refuse
from fedserver.conformance.findings import Findings
from fedserver.conformance.inspection import Announced, inspect_update, wrong_tensor
from fedserver.conformance.material import Material, Model
from fedstream import wire
from fedstream.body import admit_chunk, make_chunk
from fedstream.encodings import Encoding
from fedstream.errors import (
    BodyIncomplete,
    DigestMismatch,
    InvalidRequest,
    ManifestConflict,
    ManifestRequired,
    ProtocolError,
    RoundClosed,
    UnknownModel,
    UnknownUpload,
)
from fedstream.v1 import transfer_pb2, transfer_pb2_grpc
from fedstream.waiting import comes

_STALL_SECONDS = 5.0
"""After it, a stream on which nothing comes is taken to wait for an answer that is not due."""

_SILENCE_SECONDS = 0.2

_COMMIT_SECONDS = 0.02
"""How long bytes take to become durable: time in which an impatient client would send more than the window."""


@dataclass(frozen=True, slots=True)
class Call:
    """That an RPC was called; `subject` is the upload's id or the model's sha256."""

    name: str
    subject: str
    at: float
    detail: str = ""


@dataclass(slots=True)
class Upload:
    """An update as far as it has come. `told` is the committed size that the client knows."""

    announced: Announced
    missing: list[int]
    body: bytearray = field(default_factory=bytearray)
    told: int = 0
    finished: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(self.announced.encoded[index].size_bytes for index in self.missing)


@dataclass(slots=True)
class Terms:
    """What the session agreed on, and which uploads may come: those that are confirmed, and not those that are over."""

    chunk_bytes: int
    window_bytes: int
    upload_window_bytes: int
    """What is said of every upload; a client that goes by the welcome alone sends too much."""
    encodings: tuple[Encoding, ...] = (Encoding.RAW,)
    most_examples: int = 0
    confirmed: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)


class Transfer(transfer_pb2_grpc.TransferServiceServicer):
    """The transfer service of one scene.

    `faults` are popped one per call of a name, `None` for a call that goes well. `read_seconds` is how long the server
    takes for each chunk. Uploads keep what was first announced, so that a change is seen.
    """

    def __init__(self, material: Material, findings: Findings, note: Callable[[str], None]) -> None:
        self.terms = Terms(material.chunk_bytes, material.window_bytes, material.window_bytes // 2)
        self.models: dict[bytes, Model] = {}
        self.uploads: dict[str, Upload] = {}
        self.faults: dict[str, deque[Fault | None]] = defaultdict(deque)
        self.calls: list[Call] = []
        self.signs: list[float] = []
        self.read_seconds = 0.0
        self.lacks_nothing = False
        """Whether the server says of the next updates that it has all of their tensors already."""
        self.bytes_down = 0
        self._material = material
        self._findings = findings
        self._note = note
        self._first: dict[str, Announced] = {}
        self._answered: set[str] = set()
        self._cut: set[str] = set()
        self.bases: dict[str, Model] = {}
        """What each upload's offer starts from."""
        for model in (material.base, material.later, material.final):
            self.models[model.manifest.model_digest().sha256] = model

    def count(self, name: str, subject: str = "", since: float = 0.0) -> int:
        """How often an RPC was called."""
        return len(self.called(name, subject, since))

    def called(self, name: str, subject: str = "", since: float = 0.0) -> list[Call]:
        """Calls of an RPC, about one subject or all."""
        return [one for one in self.calls if one.name == name and one.at >= since and subject in {"", one.subject}]

    def cut_all(self) -> None:
        """Note that every upload under way has lost its connection."""
        self._cut |= {name for name in self._answered if not self.uploads[name].finished}

    # RPCs

    async def PutManifest(self, requests: Any, context: Any) -> transfer_pb2.PutManifestResponse:
        messages = [request async for request in requests]
        name = messages[0].header.upload_id if messages else ""
        fault = self._begin("PutManifest", name, f"{len(messages)} messages")
        if not _only_answer_lost(fault):
            await self._end_if(fault, context, name)
        try:
            upload = self._put(name, messages)
        except ProtocolError as error:
            await self._refuse(error, context)
        await self._end_if(fault, context, name)
        missing, size = list(upload.missing), upload.size_bytes
        if fault is Damage.DISORDER:
            missing = [*reversed(missing), len(upload.announced.manifest)]
        upload.told = len(upload.body)
        self._answered.add(name)
        return transfer_pb2.PutManifestResponse(
            missing_tensors=missing,
            body_size_bytes=size,
            committed_size=upload.told,
            window_bytes=self.terms.upload_window_bytes,
        )

    def _put(self, name: str, messages: list[Any]) -> Upload:
        self._require_open(name)
        terms = self.terms
        announced = inspect_update(messages, self._material, terms.encodings, terms.most_examples, self._findings)
        first = self._first.setdefault(name, announced)
        same = announced.identity == first.identity
        for rule in ("R-UP-7", "R-RND-5"):
            self._findings.check(rule, same, f"another manifest came for the upload {name}")
        if not same:
            raise ManifestConflict(f"another manifest was put for {name} before")
        if name not in self.uploads:
            changed = announced.manifest.indexes_changed_from(self.bases[name].manifest)
            self.uploads[name] = Upload(announced, [] if self.lacks_nothing else changed)
        return self.uploads[name]

    async def WriteChunks(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        messages = aiter(requests)
        first = await anext(messages, None)
        if first is None:
            return
        name = first.upload_id
        fault = self._begin("WriteChunks", name, f"from offset {first.chunk.write_offset}")
        if isinstance(fault, Refused) and not fault.after_bytes:
            await _fall_silent(messages)
            await self._end_if(fault, context, name)
        try:
            upload = self._upload(name)
            self._findings.check("R-UP-8", True, "")
            await _Intake(self, upload, name, context, fault).take(first, messages)
        except ProtocolError as error:
            await self._refuse(error, context)

    async def GetUploadStatus(self, request: Any, context: Any) -> transfer_pb2.GetUploadStatusResponse:
        name = request.upload_id
        fault = self._begin("GetUploadStatus", name)
        await self._end_if(fault, context, name)
        upload = self.uploads.get(name)
        if name in self.terms.closed:
            return transfer_pb2.GetUploadStatusResponse(state=transfer_pb2.UPLOAD_STATE_CLOSED)
        if upload is None:
            return transfer_pb2.GetUploadStatusResponse(state=transfer_pb2.UPLOAD_STATE_AWAITING_MANIFEST)
        upload.told = len(upload.body)
        state = transfer_pb2.UPLOAD_STATE_ADMITTED if upload.finished else transfer_pb2.UPLOAD_STATE_OPEN
        return transfer_pb2.GetUploadStatusResponse(
            committed_size=upload.told,
            body_size_bytes=upload.size_bytes,
            state=state,
            window_bytes=self.terms.upload_window_bytes,
        )

    async def FinishUpload(self, request: Any, context: Any) -> transfer_pb2.FinishUploadResponse:
        name = request.upload_id
        fault = self._begin("FinishUpload", name)
        if not _only_answer_lost(fault):
            await self._end_if(fault, context, name)
        try:
            self._finish(name)
        except ProtocolError as error:
            await self._refuse(error, context)
        await self._end_if(fault, context, name)
        return transfer_pb2.FinishUploadResponse(state=transfer_pb2.UPLOAD_STATE_ADMITTED)

    def _finish(self, name: str) -> None:
        upload = self._upload(name)
        have, size = len(upload.body), upload.size_bytes
        if have < size:
            raise BodyIncomplete(f"{have} of {size} bytes are here", committed_size=have, body_size=size)
        wrong = wrong_tensor(upload.announced, upload.missing, bytes(upload.body), self.bases[name].values)
        lossy = any(one.encoding.is_lossy for one in upload.announced.encoded)
        for rule in ("R-UP-6", *(("R-ENC-3",) if lossy else ())):
            self._findings.check(rule, wrong is None, f"the bytes of {wrong} in {name} are not those of its digest")
        if wrong is not None:
            self.forget(name)
            raise DigestMismatch(f"the bytes of {wrong} are not those of its digest", tensor=wrong)
        upload.finished = True

    async def GetManifest(self, request: Any, context: Any) -> AsyncIterator[transfer_pb2.GetManifestResponse]:
        digest = request.model_sha256.hex()
        fault = self._begin("GetManifest", digest)
        await self._end_if(fault, context, digest)
        model = self.models.get(request.model_sha256)
        if model is None:
            await self._refuse(UnknownModel(f"there is no model {digest[:12]}"), context)
        if fault is Damage.OTHER_MODEL:
            model = next(one for one in self.models.values() if one is not model)
        for part in wire.manifest_parts(model.manifest):
            yield transfer_pb2.GetManifestResponse(num_tensors=len(model.manifest), part=part)

    async def ReadChunks(self, request: Any, context: Any) -> AsyncIterator[transfer_pb2.ReadChunksResponse]:
        digest = request.model_sha256.hex()
        detail = f"tensors {list(request.tensors)} from offset {request.read_offset}"
        fault = self._begin("ReadChunks", digest, detail)
        model = self.models.get(request.model_sha256)
        if model is None:
            await self._refuse(UnknownModel(f"there is no model {digest[:12]}"), context)
        if not isinstance(fault, Refused) or not fault.after_bytes:
            await self._end_if(fault, context, digest)
        try:
            indexes = wire.read_indexes(request.tensors, len(model.values)) or range(len(model.values))
        except InvalidRequest as error:
            self._findings.check("R-DL-2", False, error.message)
            await self._refuse(error, context)
        self._findings.check("R-DL-2", True, "")
        body = b"".join(model.values[index] for index in indexes)
        length = min(request.max_chunk_bytes or self.terms.chunk_bytes, self.terms.chunk_bytes)
        for number, offset in enumerate(range(request.read_offset, len(body), length)):
            await asyncio.sleep(self.read_seconds)
            data = body[offset : offset + length]
            self.bytes_down += len(data)
            damage = fault if number == 1 or length >= len(body) else None
            yield transfer_pb2.ReadChunksResponse(chunk=_damaged(offset, data, damage))
            if isinstance(fault, Refused) and offset + len(data) - request.read_offset >= fault.after_bytes:
                await self._end_if(fault, context, digest)

    # What all have in common

    def _begin(self, name: str, subject: str, detail: str = "") -> Fault | None:
        """Note a call, hold it against the rule of what comes after a cut, and take its fault."""
        self.calls.append(Call(name, subject, asyncio.get_running_loop().time(), detail))
        self._note(f"client -> {name} {subject[:16]} {detail}")
        if subject in self._cut:
            self._cut.discard(subject)
            asked = f"after a cut, {name} came for {subject} before GetUploadStatus"
            self._findings.check("R-UP-17", name == "GetUploadStatus", asked)
        waiting = self.faults[name]
        fault = waiting.popleft() if waiting else None
        if fault is not None:
            self._note(f"server: {name} goes wrong: {fault}")
        return fault

    async def _end_if(self, fault: Fault | None, context: Any, subject: str) -> None:
        if not isinstance(fault, Refused):
            return
        if fault.error is None and subject in self._answered:
            self._cut.add(subject)
        if isinstance(fault.error, DigestMismatch):
            self.forget(subject)
        if isinstance(fault.error, RoundClosed | UnknownUpload):
            self.terms.closed.add(subject)
        await refuse(context, fault)

    async def _refuse(self, error: ProtocolError, context: Any) -> NoReturn:
        self._note(f"server refuses: {error.reason}: {error.message}")
        await refuse(context, Refused(error))

    def forget(self, name: str) -> None:
        """As after DIGEST_MISMATCH: the upload begins anew with its manifest."""
        self.uploads.pop(name, None)
        self._answered.discard(name)

    def _require_open(self, name: str) -> None:
        words = f"an upload {name!r} came that was not confirmed"
        confirmed = self._findings.check("R-RND-2", name in self.terms.confirmed, words)
        if not confirmed or name in self.terms.closed:
            raise RoundClosed(f"the upload {name} is not waited for")

    def _upload(self, name: str) -> Upload:
        self._require_open(name)
        if name not in self.uploads:
            raise ManifestRequired(f"the manifest of {name} comes first")
        return self.uploads[name]


class _Intake:
    """One stream of chunks: what comes is looked at at once, and committed a little later."""

    def __init__(self, transfer: Transfer, upload: Upload, name: str, context: Any, fault: Fault | None) -> None:
        self._transfer, self._upload, self._name, self._context = transfer, upload, name, context
        self._fault = fault if isinstance(fault, Refused) else None
        self._findings: Findings = transfer._findings
        self._expected = upload.told
        self._came = 0
        self._wake = asyncio.Event()
        self._ended = False
        self._answering = asyncio.Lock()  # gRPC may lose the status of a call that is ended while it is written to

    async def take(self, first: Any, messages: Any) -> None:
        committing = asyncio.create_task(self._commit())
        try:
            await self._admit(first)
            async for message in messages:
                same = message.upload_id in {"", self._name}
                self._findings.check("R-UP-8", same, f"a stream of {self._name} had a chunk of {message.upload_id}")
                await self._admit(message)
            self._ended = True
            self._wake.set()
            await committing
        finally:
            committing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await committing

    async def _admit(self, message: Any) -> None:
        transfer, upload, chunk = self._transfer, self._upload, wire.read_chunk(message.chunk)
        await asyncio.sleep(transfer.read_seconds)
        transfer.signs.append(asyncio.get_running_loop().time())
        self._inspect(chunk)
        upload.body += admit_chunk(chunk, len(upload.body), upload.size_bytes, transfer.terms.chunk_bytes)
        if chunk.data:  # an empty one says nothing of where the next begins
            self._expected = chunk.write_offset + len(chunk.data)
        self._came += len(chunk.data)
        self._wake.set()
        if self._fault is not None and self._came >= self._fault.after_bytes:
            async with self._answering:
                if self._fault.loses:
                    del upload.body[upload.told :]
                await transfer._end_if(self._fault, self._context, self._name)

    def _inspect(self, chunk: Any) -> None:
        check, terms, upload = self._findings.check, self._transfer.terms, self._upload
        start, length = chunk.write_offset, len(chunk.data)
        largest = terms.chunk_bytes
        check("R-CH-1", length <= largest, f"a chunk of {length} bytes, where {largest} were agreed")
        check("R-CH-2", google_crc32c.value(chunk.data) == chunk.crc32c, f"the crc32c of the chunk at {start} is wrong")
        check("R-CH-3", start <= len(upload.body), f"a chunk at {start}, where {len(upload.body)} bytes are here")
        follows = start == self._expected or length == 0
        check("R-UP-9", follows, f"a chunk at {start}, where the one at {self._expected} was due")
        end = start + length
        check("R-CH-4", end <= upload.size_bytes, f"a chunk to {end} of a body of {upload.size_bytes} bytes")
        flying = end - upload.told
        window = terms.upload_window_bytes
        words = f"{flying} bytes in flight beyond committed_size, where the upload's window is {window}"
        check("R-UP-9", flying <= window, words)

    async def _commit(self) -> None:
        upload, half = self._upload, self._transfer.terms.upload_window_bytes / 2
        while True:
            if not await comes(self._wake, _STALL_SECONDS):
                here = f"it waited for an answer at {len(upload.body)} bytes, of which {upload.told} were committed"
                words = f"{here}; half the upload's window is {half:g}"
                self._findings.check("R-UP-11", False, words)
                await self._wake.wait()
            self._wake.clear()
            ended = self._ended
            due = len(upload.body) - upload.told >= half or len(upload.body) == upload.size_bytes
            if due or ended:
                await asyncio.sleep(_COMMIT_SECONDS)
                async with self._answering:
                    upload.told = len(upload.body)
                    await self._context.write(transfer_pb2.WriteChunksResponse(committed_size=upload.told))
            if ended:
                self._findings.check("R-UP-11", True, "")
                return


async def _fall_silent(messages: Any) -> None:
    """Return when the client waits: gRPC may lose the status of a stream that ends while its other end writes."""
    with contextlib.suppress(TimeoutError):
        while True:
            async with asyncio.timeout(_SILENCE_SECONDS):
                if await anext(messages, None) is None:
                    return


def _only_answer_lost(fault: Fault | None) -> bool:
    """Whether a call of one answer does its work before it goes wrong."""
    return isinstance(fault, Refused) and fault.after_bytes > 0


def _damaged(offset: int, data: bytes, fault: Fault | None) -> transfer_pb2.Chunk:
    if fault is Damage.GAP:
        return wire.write_chunk(make_chunk(offset + 1, data[1:]))
    other = bytes([data[0] ^ 1]) + data[1:] if isinstance(fault, Damage) else data
    chunk = wire.write_chunk(make_chunk(offset, other))
    if fault is Damage.CRC:
        chunk.crc32c ^= 1
    return chunk
