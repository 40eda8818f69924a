"""Updates on their way in: chunks go straight to the place in a weights file where they stay.

Once the manifest is known, so is the file's header, and the body is the file's data section: finishing an upload is an
fsync and a rename, whatever its size. The body of an update that travels encoded goes to a file of its own, from which
the weights file is made tensor by tensor, while the rest still comes.

Methods block on the disk and are called from threads; locks per upload keep a thread that outlived its cancelled call
from writing to a file that was dropped meanwhile. More may be written while a `sync` is under way: it vouches only for
what was there when it began.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from itertools import accumulate
from pathlib import Path

import numpy as np

from fedserver.aggregation import Look
from fedserver.store.updates import Update, UpdateFacts
from fedstream.body import Bytes
from fedstream.encodings import BasePiece, DecodingError, Encoded, Encoding, decode
from fedstream.errors import DigestMismatch, RoundClosed, WrongOffset
from fedstream.files import TEMPORARY_SUFFIX, FileSystem, publish
from fedstream.manifest import Manifest, TensorEntry, raw_bytes
from fedstream.weights_file import header_of
from fedtask.task import Weights


class Upload:
    """One update on its way in.

    Of the `received_size` bytes that came, `sync` puts on the medium what was there when it began. `committed_size` of
    them are recorded in the database as well: only these are ever told to anybody.

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
        self._entries = [manifest.entries[index] for index in missing]
        self._raw = [Encoded(Encoding.RAW, entry.size_bytes) for entry in self._entries]
        self._encoded = [
            facts.encoded.get(entry.name, as_is) for entry, as_is in zip(self._entries, self._raw, strict=True)
        ]
        # Where each tensor begins, and the last one ends, in the body and among the values.
        self._body_places = [0, *accumulate(encoded.size_bytes for encoded in self._encoded)]
        self._value_places = [0, *accumulate(entry.size_bytes for entry in self._entries)]
        self.size_bytes = self._body_places[-1]
        self._is_encoded = self._encoded != self._raw
        self._files = files
        # One fsync at a time, and the descriptor stays open for as long; taken before `_lock`, never within it.
        self._syncing = threading.Lock()
        # Guards the descriptor and the sizes; only the file system is called under it. `sync` does without it.
        self._lock = threading.Lock()
        self._partial, encoded_body = on_their_way(path)
        self._header = header_of(self._entries)
        self._body, self._body_start = (encoded_body, 0) if self._is_encoded else (self._partial, len(self._header))
        self._is_header_lost = False
        self._sealed = path.exists()
        self._dropped = False
        self._descriptor: int | None = None if self._sealed else files.open(self._body)
        try:
            self.received_size = self.committed_size = self._kept(committed_size)
        except BaseException:
            self._close()  # nobody will ever hold this object, and its file would stay open
            raise
        self._name_is_durable = self.committed_size > 0
        self._num_verified = 0

    def _kept(self, committed_size: int) -> int:
        if self._sealed:
            return self.size_bytes
        assert self._descriptor is not None, "an upload that is not sealed has an open file"
        if committed_size and self._body.stat().st_size >= self._body_start + committed_size:
            return committed_size
        if not self._is_encoded:
            self._files.write_at(self._descriptor, 0, self._header)
        return 0

    def write(self, offset: int, data: Bytes) -> None:
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
                self._write_lost_header()
                self._files.write_at(self._opened(), self._body_start + self.received_size, new)
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
                    self._is_header_lost = not self.committed_size
                raise
            return received

    def _write_lost_header(self) -> None:
        if self._is_header_lost and not self._is_encoded:
            self._files.write_at(self._opened(), 0, self._header)
        self._is_header_lost = False

    def _sync(self, descriptor: int) -> None:
        self._files.sync(descriptor)
        if not self._name_is_durable:
            self._files.sync_folder(self.path.parent)  # or a power cut may take the name, and with it the bytes
            self._name_is_durable = True

    def committed(self, size: int) -> None:
        """Take note that so many bytes are durable, and recorded as such."""
        self.committed_size = max(self.committed_size, size)

    def wants_commit(self, window_bytes: int) -> bool:
        """Whether enough is uncommitted to be worth an fsync: half a window, so that the sender never has to stop."""
        uncommitted = self.received_size - self.committed_size
        return 2 * uncommitted >= window_bytes or (uncommitted > 0 and self.received_size == self.size_bytes)

    def verify(self, base: Weights, look: Look | None = None) -> None:
        """Check every received tensor that is committed whole, and was not checked before, against its digest.

        So it may be called while the rest comes, by one caller at a time, and is quick at the end. What is read is what
        the file has, not what came. Of a body that is encoded, the values are decoded and written to where they stay.

        Args:
            base: what the update started from.
            look: is shown each piece of these tensors while it is at hand.

        Raises:
            DigestMismatch: one differs; the upload is to be dropped and started again.
        """
        if self._is_encoded and not self._sealed:
            with self._weights_file() as written, self._body.open("rb") as file:
                file.seek(self._body_places[self._num_verified])
                self._check_whole(file, self._encoded, base, look, written)
            return
        with (self._partial if self._partial.exists() else self.path).open("rb") as file:
            if file.read(len(self._header)) != self._header:  # the server's own bytes: the disk has changed them
                message = "the file of this upload is damaged in its header; put the manifest again and start at 0"
                raise DigestMismatch(message)
            file.seek(self._value_places[self._num_verified], os.SEEK_CUR)
            self._check_whole(file, self._raw, base, look)

    @contextmanager
    def _weights_file(self) -> Iterator[int]:
        """Where the values of a body that is encoded are written."""
        with self._lock:
            if self._dropped:
                raise RoundClosed("this upload was dropped")
            descriptor = self._files.open(self._partial)
        try:
            if self._num_verified == 0:
                self._files.write_at(descriptor, 0, self._header)
            yield descriptor
        finally:
            self._files.close(descriptor)

    def _check_whole(
        self,
        file: BufferedReader,
        encoded: Sequence[Encoded],
        base: Weights,
        look: Look | None,
        written: int | None = None,
    ) -> None:
        """Check tensors of `file`, from the first that was not on; values go to the descriptor `written`, if any."""
        while (entry := self._next_whole()) is not None:
            digest, place = hashlib.sha256(), 0
            start = len(self._header) + self._value_places[self._num_verified]
            try:
                for values in decode(encoded[self._num_verified], file, entry, _pieces_of(base, entry)):
                    piece = raw_bytes(values)
                    digest.update(piece)
                    if written is not None:
                        self._files.write_at(written, start + place, piece)
                    if look is not None:
                        look(entry.name, place // entry.dtype.itemsize, values)
                    place += piece.nbytes
            except DecodingError as error:
                raise _mismatch(entry) from error
            if digest.digest() != entry.digest.sha256:
                raise _mismatch(entry)
            self._num_verified += 1

    @property
    def has_unverified(self) -> bool:
        """Whether there is a tensor that `verify` would check."""
        return self._next_whole() is not None

    def _next_whole(self) -> TensorEntry | None:
        """The first tensor that was not checked yet, if all of it is committed."""
        number = self._num_verified
        is_whole = number < len(self._entries) and self._body_places[number + 1] <= self.committed_size
        return self._entries[number] if is_whole else None

    def seal(self) -> Update:
        """Give the complete and verified file its name, durably. A second time it changes nothing."""
        with self._syncing, self._lock:
            if not self._sealed:
                self._seal()
        return self.update()

    def _seal(self) -> None:
        assert self._num_verified == len(self.missing), "an upload is sealed when all of it was verified"
        if self._partial.exists():
            # A body that is not encoded is the file itself, and durable as far as it is committed.
            if self._is_encoded or not self.size_bytes:
                self._sync_values()
            publish(self._files, self._partial, self.path)
        else:  # an earlier try got as far as the new name
            self._files.sync_folder(self.path.parent)
        self._sealed = True
        self._close()
        if self._is_encoded:
            self._files.remove(self._body)

    def _sync_values(self) -> None:
        self._write_lost_header()
        descriptor = self._files.open(self._partial) if self._is_encoded else self._opened()
        try:
            self._files.sync(descriptor)
        except OSError:
            self._is_header_lost = True
            self._num_verified = 0  # so that values that were decoded are written once more
            raise
        finally:
            if self._is_encoded:
                self._files.close(descriptor)

    def update(self) -> Update:
        """The sealed update."""
        return Update(self.path, self.facts, self.manifest, self.missing)

    def drop(self) -> None:
        """Throw away what was received. Safe at any time, and twice."""
        with self._syncing, self._lock:
            self._dropped = True
            self._close()
            for path in on_their_way(self.path):
                self._files.remove(path)
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


def on_their_way(path: Path) -> tuple[Path, Path]:
    """Where the values, and the body of an update that travels encoded, are until the update is at `path`."""
    return path.with_name(path.name + TEMPORARY_SUFFIX), path.with_name(f"{path.name}.encoded{TEMPORARY_SUFFIX}")


def _mismatch(entry: TensorEntry) -> DigestMismatch:
    message = f"tensor {entry.name} does not match its digest; put the manifest again and start at 0"
    return DigestMismatch(message, tensor=entry.name)


def _pieces_of(base: Weights, entry: TensorEntry) -> BasePiece:
    def piece(begin: int, end: int) -> np.ndarray:
        return base[entry.name].reshape(-1)[begin:end]  # asked for piece by piece: what is held is in memory

    return piece
