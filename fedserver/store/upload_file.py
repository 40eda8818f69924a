"""Updates on their way in: chunks go straight to the place in a weights file where they stay.

Once the manifest is known, so is the file's header, and the body is the file's data section: finishing an upload is an
fsync and a rename, whatever its size. Methods block on the disk and are called from threads; locks per upload keep a
thread that outlived its cancelled call from writing to a file that was dropped meanwhile. More may be written while a
`sync` is under way: it vouches only for what was there when it began.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fedserver.store.blobs import sha256_of_next
from fedserver.store.updates import Update, UpdateFacts
from fedstream import limits
from fedstream.body import body_size
from fedstream.errors import DigestMismatch, RoundClosed, WrongOffset
from fedstream.files import TEMPORARY_SUFFIX, FileSystem, publish
from fedstream.manifest import Manifest, TensorEntry
from fedstream.weights_file import header_of

Look = Callable[[str, int, np.ndarray], None]
"""Takes a tensor's name, a place in the flat tensor, and the values from there on, in the order of places; each time
`blobs.BLOCK_BYTES` of them, the last time what is left. They are gone after the call."""


class Upload:
    """One update on its way in.

    Of `received_size` bytes, `sync` has put the first so many on the medium, and of these, `committed_size` are
    recorded in the database too: only they are ever told to anybody.

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
        # One fsync at a time, and the descriptor stays open for as long; taken before `_lock`, never within it.
        self._syncing = threading.Lock()
        # Guards the descriptor and the sizes; only the file system is called under it. `sync` does without it.
        self._lock = threading.Lock()
        self._partial = path.with_name(path.name + TEMPORARY_SUFFIX)
        self._header = header_of(manifest.entries[index] for index in missing)
        self._sealed = path.exists()
        self._descriptor: int | None = None if self._sealed else files.open(self._partial)
        try:
            self.received_size = self.committed_size = self._kept(committed_size)
        except BaseException:
            self._close()  # nobody will ever hold this object, and its file would stay open
            raise
        self._name_is_durable = self.committed_size > 0
        self._num_verified = self._verified_size = 0

    def _kept(self, committed_size: int) -> int:
        if self._sealed:
            return self.size_bytes
        assert self._descriptor is not None, "an upload that is not sealed has an open file"
        if committed_size and self._partial.stat().st_size >= len(self._header) + committed_size:
            return committed_size
        self._files.write_at(self._descriptor, 0, self._header)
        return 0

    def write(self, offset: int, data: bytes) -> None:
        """Add bytes of the body that start at `offset`; they are not durable before `sync`.

        What is there already is left out: the thread of a cancelled call may have been faster, or be slower.

        Raises:
            WrongOffset: bytes before `offset` are missing; a failed `sync` may have lost them.
        """
        with self._lock:
            known = self.received_size - offset
            if known < 0:
                message = f"{self.received_size} bytes are here, not {offset}; resume there"
                raise WrongOffset(message, committed_size=self.committed_size)
            new = memoryview(data)[known:]
            if new:
                self._files.write_at(self._opened(), len(self._header) + self.received_size, new)
                self.received_size += len(new)

    def sync(self) -> int:
        """Put all that was received so far on the medium; returns how much that is. What comes meanwhile is not in it.

        Raises:
            OSError: the medium refused. What was not committed counts as not received: after a failed fsync the kernel
                may have thrown it away and still say yes to the next one.
        """
        with self._syncing:
            with self._lock:
                if self._sealed:
                    return self.size_bytes
                descriptor, received = self._opened(), self.received_size
            try:
                self._sync(descriptor)
            except OSError:
                with self._lock:
                    self.received_size = self.committed_size
                raise
            return received

    def _sync(self, descriptor: int) -> None:
        self._files.sync(descriptor)
        if not self._name_is_durable:
            self._files.sync_folder(self.path.parent)  # or a power cut may take the name, and with it the bytes
            self._name_is_durable = True

    def committed(self, size: int) -> None:
        """Take note that so many bytes are durable, and recorded as such."""
        self.committed_size = max(self.committed_size, size)

    def wants_commit(self) -> bool:
        """Whether enough is uncommitted to be worth an fsync: half a window, so that the sender never has to stop."""
        uncommitted = self.received_size - self.committed_size
        return uncommitted >= limits.WINDOW_BYTES // 2 or (uncommitted > 0 and self.received_size == self.size_bytes)

    def verify(self, look: Look | None = None) -> None:
        """Check every received tensor that is committed whole, and was not checked before, against its digest.

        So it may be called while the rest comes, by one caller at a time, and is quick at the end. What is read is what
        the file has, not what came.

        Args:
            look: is shown each piece of these tensors while it is at hand.

        Raises:
            DigestMismatch: one differs; the upload is to be dropped and started again.
        """
        with (self._partial if self._partial.exists() else self.path).open("rb") as file:
            if file.read(len(self._header)) != self._header:  # the server's own bytes: the disk has changed them
                message = "the file of this upload is damaged in its header; put the manifest again and start at 0"
                raise DigestMismatch(message)
            file.seek(self._verified_size, os.SEEK_CUR)
            while (entry := self._next_whole()) is not None:
                show = _shower(entry, look) if look is not None else None
                if sha256_of_next(file, entry.size_bytes, show) != entry.digest.sha256:
                    message = f"tensor {entry.name} does not match its digest; put the manifest again and start at 0"
                    raise DigestMismatch(message, tensor=entry.name)
                self._num_verified += 1
                self._verified_size += entry.size_bytes

    @property
    def has_unverified(self) -> bool:
        """Whether there is a tensor that `verify` would check."""
        return self._next_whole() is not None

    def _next_whole(self) -> TensorEntry | None:
        """The first tensor that was not checked yet, if all of it is committed."""
        if self._num_verified == len(self.missing):
            return None
        entry = self.manifest.entries[self.missing[self._num_verified]]
        return entry if self._verified_size + entry.size_bytes <= self.committed_size else None

    def seal(self) -> None:
        """Give the complete and verified file its name, durably. A second time it changes nothing."""
        with self._syncing, self._lock:
            if self._sealed:
                return
            assert self._num_verified == len(self.missing), "an upload is sealed when all of it was verified"
            if self._partial.exists():
                self._files.sync(self._opened())
                publish(self._files, self._partial, self.path)
            else:  # an earlier try got as far as the new name
                self._files.sync_folder(self.path.parent)
            self._sealed = True
            self._close()

    def update(self) -> Update:
        """The sealed update."""
        return Update(self.path, self.facts, self.manifest, self.missing)

    def drop(self) -> None:
        """Throw away what was received. Safe at any time, and twice."""
        with self._syncing, self._lock:
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


def _shower(entry: TensorEntry, look: Look) -> Callable[[memoryview], None]:
    """Takes the bytes of a tensor, piece after piece, and shows them as values."""
    place = 0

    def show(piece: memoryview) -> None:
        nonlocal place
        whole = piece[: piece.nbytes - piece.nbytes % entry.dtype.itemsize]  # less only where the file was cut short
        look(entry.name, place, np.frombuffer(whole, entry.dtype.numpy))
        place += whole.nbytes // entry.dtype.itemsize

    return show
