"""Updates on their way in: chunks go straight to the place in a weights file where they stay.

Once the manifest is known, so is the file's header, and the body is the file's data section: finishing an upload is an
fsync and a rename, whatever its size. Methods block on the disk and are called from threads; a lock per upload keeps a
thread that outlived its cancelled call from writing to a file that was dropped meanwhile.
"""

from __future__ import annotations

import enum
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import TypeAdapter

from fedserver.store.database import Database
from fedserver.store.journal import Statement
from fedstream import limits
from fedstream.body import body_size
from fedstream.errors import DigestMismatch, RoundClosed
from fedstream.files import TEMPORARY_SUFFIX, FileSystem, publish
from fedstream.manifest import Manifest, parse_canonical
from fedstream.weights_file import WeightsFile, header_of

_HASH_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class UpdateFacts:
    """What a client says of its update. `training_seconds` is by its own clock."""

    num_examples: int
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    epochs: int = 0
    training_seconds: float = 0.0


_FACTS = TypeAdapter(UpdateFacts)


@dataclass(frozen=True, slots=True)
class Update:
    """A stored update: the file with the tensors that the server lacked, and what the client said of it."""

    path: Path
    facts: UpdateFacts

    def tensors(self) -> dict[str, np.ndarray]:
        """Its tensors, as read-only views of the mapped file."""
        return WeightsFile(self.path).weights()


class Upload:
    """One update on its way in.

    An upload that an earlier process left is taken up with what was committed then. If that process had sealed the file
    but not recorded it, the sealed file is verified once more and stays as it is.

    Args:
        path: where the finished file will be; until then it has a suffix.
        manifest: of the whole update.
        missing: indexes of the tensors that the body holds.
        facts: what the client says of it.
        files: the file system.
        committed_size: bytes that an earlier process made durable.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        missing: Sequence[int],
        facts: UpdateFacts,
        files: FileSystem,
        committed_size: int = 0,
    ) -> None:
        self.path, self.manifest, self.missing, self.facts = path, manifest, list(missing), facts
        self.size_bytes = body_size(manifest, missing)
        self._files = files
        self._lock = threading.Lock()  # guards the descriptor and the sizes; only the file system is called under it
        self._partial = path.with_name(path.name + TEMPORARY_SUFFIX)
        self._header = header_of(manifest.entries[index] for index in missing)
        self._sealed = path.exists()
        self._descriptor: int | None = None if self._sealed else files.open(self._partial)
        self.received_size = self.committed_size = self._kept(committed_size)

    def _kept(self, committed_size: int) -> int:
        if self._sealed:
            return self.size_bytes
        assert self._descriptor is not None, "an upload that is not sealed has an open file"
        if committed_size and self._partial.stat().st_size >= len(self._header) + committed_size:
            return committed_size
        self._files.write_at(self._descriptor, 0, self._header)
        return 0

    def write(self, data: bytes) -> None:
        """Append bytes of the body; they are not durable before `commit`."""
        with self._lock:
            self._files.write_at(self._opened(), len(self._header) + self.received_size, data)
            self.received_size += len(data)

    def commit(self) -> int:
        """Make all that was written durable; returns the new committed size."""
        with self._lock:
            if self.received_size > self.committed_size:
                self._files.sync(self._opened())
                self.committed_size = self.received_size
            return self.committed_size

    def wants_commit(self) -> bool:
        """Whether enough is uncommitted to be worth an fsync: half a window, so that the sender never has to stop."""
        uncommitted = self.received_size - self.committed_size
        return uncommitted >= limits.WINDOW_BYTES // 2 or (uncommitted > 0 and self.received_size == self.size_bytes)

    def verify(self) -> None:
        """Check every received tensor against its digest.

        Raises:
            DigestMismatch: one differs; the upload is to be dropped and started again.
        """
        with (self.path if self._sealed else self._partial).open("rb") as file:
            file.seek(len(self._header))
            for entry in (self.manifest.entries[index] for index in self.missing):
                if _sha256_of_next(file, entry.size_bytes) != entry.digest.sha256:
                    message = f"tensor {entry.name} does not match its digest; put the manifest again and start at 0"
                    raise DigestMismatch(message, tensor=entry.name)

    def seal(self) -> None:
        """Give the complete and verified file its name, durably."""
        with self._lock:
            if not self._sealed:
                self._files.sync(self._opened())
                self._close()
                publish(self._files, self._partial, self.path)
                self._sealed = True

    def update(self) -> Update:
        """The sealed update."""
        return Update(self.path, self.facts)

    def drop(self) -> None:
        """Throw away what was received. Safe at any time, and twice."""
        with self._lock:
            self._close()
            self._files.remove(self._partial)
            if self._sealed:
                self._files.remove(self.path)

    def _opened(self) -> int:
        if self._descriptor is None:
            raise RoundClosed("this upload was dropped or is finished")
        return self._descriptor

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._files.close(descriptor)


class UploadState(enum.Enum):
    """Where an upload stands. Legal transitions:

    AWAITING_MANIFEST -> OPEN -> ADMITTED | QUARANTINED | CLOSED
    OPEN -> AWAITING_MANIFEST (a digest did not match)
    AWAITING_MANIFEST -> CLOSED
    """

    AWAITING_MANIFEST = "awaiting_manifest"
    OPEN = "open"
    ADMITTED = "admitted"
    QUARANTINED = "quarantined"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """An upload as an earlier process left it: still open, or finished and in `state` for `reason`."""

    upload_id: str
    upload: Upload
    state: UploadState
    reason: str


class UploadStore:
    """Where updates are received and kept: files in a folder, facts in the database.

    Args:
        folder: made if need be.
        database: where the facts are.
        files: the file system.
    """

    def __init__(self, folder: Path, database: Database, files: FileSystem) -> None:
        folder.mkdir(exist_ok=True, mode=0o700)
        self._folder, self._database, self._files = folder, database, files

    def begin(self, upload_id: str, manifest: Manifest, missing: Sequence[int], facts: UpdateFacts) -> Upload:
        """A new upload. `upload_id` is the server's own invention, so it may name a file."""
        return Upload(self._path(upload_id), manifest, missing, facts, self._files)

    def of_round(self, number: int) -> list[StoredUpload]:
        """The uploads of a round as an earlier process left them."""
        sql = "SELECT upload_id, manifest, missing, facts, committed_size, state, reason FROM uploads WHERE round = ?"
        return [self._stored(*row) for row in self._database.query(sql, number)]

    def _stored(
        self, upload_id: str, manifest: bytes, missing: str, facts: str, committed: int, state: str, reason: str
    ) -> StoredUpload:
        upload = Upload(
            self._path(upload_id),
            parse_canonical(manifest),
            json.loads(missing),
            _FACTS.validate_json(facts),
            self._files,
            committed,
        )
        return StoredUpload(upload_id, upload, UploadState(state), reason)

    def remove_all_of(self, number: int) -> None:
        """Throw away a round's updates, rows first: a file without a row is litter, a row without a file a loss."""
        ids = [row[0] for row in self._database.query("SELECT upload_id FROM uploads WHERE round = ?", number)]
        self._database.execute("DELETE FROM uploads WHERE round = ?", number)
        for upload_id in ids:
            self._files.remove(self._path(upload_id))

    def _path(self, upload_id: str) -> Path:
        return self._folder / f"{upload_id}.safetensors"


def beginning(upload_id: str, round_number: int, upload: Upload) -> Statement:
    """What makes a new upload's manifest durable."""
    values = (
        upload_id,
        round_number,
        upload.manifest.canonical_bytes(),
        json.dumps(upload.missing),
        _FACTS.dump_json(upload.facts).decode(),
        upload.committed_size,
        UploadState.OPEN.value,
        "",
    )
    return Statement("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def committing(upload_id: str, committed_size: int) -> Statement:
    """What makes the knowledge durable that so many bytes are; written after their fsync."""
    sql = "UPDATE uploads SET committed_size = max(committed_size, ?) WHERE upload_id = ?"
    return Statement(sql, (committed_size, upload_id))


def settling(upload_id: str, state: UploadState, reason: str) -> Statement:
    """What makes the end of an upload durable."""
    return Statement("UPDATE uploads SET state = ?, reason = ? WHERE upload_id = ?", (state.value, reason, upload_id))


def forgetting(upload_id: str) -> Statement:
    """What makes an upload begin anew, without a manifest."""
    return Statement("DELETE FROM uploads WHERE upload_id = ?", (upload_id,))


def _sha256_of_next(file: BinaryIO, size_bytes: int) -> bytes:
    digest, left = hashlib.sha256(), size_bytes
    while left and (block := file.read(min(left, _HASH_BLOCK_BYTES))):
        digest.update(block)
        left -= len(block)
    return digest.digest()
