"""Updates on their way in: chunks go straight to the place in a weights file where they stay.

Once the manifest is known, so is the file's header, and the body is the file's data section: finishing an upload is an
fsync and a rename, whatever its size. Methods block on the disk and are called from threads; a lock per upload keeps a
thread that outlived its cancelled call from writing to a file that was dropped meanwhile.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedstream import limits
from fedstream.body import body_size
from fedstream.errors import DigestMismatch, RoundClosed
from fedstream.files import TEMPORARY_SUFFIX, FileSystem, publish
from fedstream.manifest import Manifest
from fedstream.weights_file import WeightsFile, header_of

_HASH_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class UpdateFacts:
    """What a client says of its update. `training_seconds` is by its own clock."""

    num_examples: int
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    epochs: int = 0
    training_seconds: float = 0.0


class Upload:
    """One update on its way in.

    Args:
        path: where the finished file will be; until then it has a suffix.
        manifest: of the whole update.
        missing: indexes of the tensors that the body holds.
        facts: what the client says of it.
        files: the file system.
    """

    def __init__(
        self, path: Path, manifest: Manifest, missing: Sequence[int], facts: UpdateFacts, files: FileSystem
    ) -> None:
        self.path, self.manifest, self.missing, self.facts = path, manifest, list(missing), facts
        self.size_bytes = body_size(manifest, missing)
        self.received_size = 0
        self.committed_size = 0
        self._files = files
        self._lock = threading.Lock()  # guards the descriptor and the sizes; only the file system is called under it
        self._partial = path.with_name(path.name + TEMPORARY_SUFFIX)
        self._header = header_of(manifest.entries[index] for index in missing)
        self._descriptor: int | None = files.open(self._partial)
        files.write_at(self._descriptor, 0, self._header)

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
        with self._partial.open("rb") as file:
            file.seek(len(self._header))
            for entry in (self.manifest.entries[index] for index in self.missing):
                if _sha256_of_next(file, entry.size_bytes) != entry.digest.sha256:
                    message = f"tensor {entry.name} does not match its digest; put the manifest again and start at 0"
                    raise DigestMismatch(message, tensor=entry.name)

    def seal(self) -> None:
        """Give the complete and verified file its name, durably."""
        with self._lock:
            self._files.sync(self._opened())
            self._close()
            publish(self._files, self._partial, self.path)

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors that the sealed update brought, as read-only views of the mapped file."""
        return WeightsFile(self.path).weights()

    def drop(self) -> None:
        """Throw away what was received. Safe at any time, and twice."""
        with self._lock:
            self._close()
            self._files.remove(self._partial)

    def _opened(self) -> int:
        if self._descriptor is None:
            raise RoundClosed("this upload was dropped or is finished")
        return self._descriptor

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._files.close(descriptor)


class UploadFolder:
    """Where updates are received and kept.

    Args:
        folder: made if need be.
        files: the file system.
    """

    def __init__(self, folder: Path, files: FileSystem) -> None:
        folder.mkdir(exist_ok=True, mode=0o700)
        self._folder, self._files = folder, files

    def begin(self, upload_id: str, manifest: Manifest, missing: Sequence[int], facts: UpdateFacts) -> Upload:
        """A new upload. `upload_id` is the server's own invention, so it may name a file."""
        return Upload(self._path(upload_id), manifest, missing, facts, self._files)

    def remove(self, upload_id: str) -> None:
        """Throw a finished update away."""
        self._files.remove(self._path(upload_id))

    def _path(self, upload_id: str) -> Path:
        return self._folder / f"{upload_id}.safetensors"


def _sha256_of_next(file: BinaryIO, size_bytes: int) -> bytes:
    digest, left = hashlib.sha256(), size_bytes
    while left and (block := file.read(min(left, _HASH_BLOCK_BYTES))):
        digest.update(block)
        left -= len(block)
    return digest.digest()
