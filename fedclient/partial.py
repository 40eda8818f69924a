"""A model on its way, received straight into the file in which it will stay.

The manifest says where every byte belongs, so the file is filled from its beginning without a gap: the header, then
tensor by tensor, from the network or, where another model here has the same values, by a copy. Its length is how far
it is, so that neither a cut nor a restart of the client asks for a byte twice. Each tensor is hashed as its bytes come
by, and checked when it is whole.

Nothing is synced. After a power cut the file may hold anything: whoever opens it next hashes what is there and, where
that is not what it should be, begins anew. A whole file, under its final name, is hashed by `ModelStore.load` likewise.
So a power cut costs a download at most, and no round waits for the disk.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog

from fedclient.models import DamagedTensor
from fedstream import limits
from fedstream.body import Chunk, admit_chunk, body_size
from fedstream.errors import ProtocolError, TransportError
from fedstream.files import FileSystem
from fedstream.manifest import Digest, Manifest
from fedstream.weights_file import FileSpan, header_of

log = structlog.get_logger()

_PIECE_BYTES = 4 << 20
"""How much is read from a file at a time: calls cost nothing beside hashing, and no model is in memory whole."""


class PartialModel:
    """A model as far as it is here. `open`, `take` and `close` block.

    Args:
        manifest: the model's.
        path: of the file.
        files: the file system.
        known: where values stand that need no download, by digest.
    """

    def __init__(self, manifest: Manifest, path: Path, files: FileSystem, known: Mapping[Digest, FileSpan]) -> None:
        entries = manifest.entries
        self._entries = entries
        self._header = header_of(manifest)
        self._path = path
        self._files = files
        self._known = known
        self.lacking = [i for i, entry in enumerate(entries) if entry.size_bytes and entry.digest not in known]
        """Indexes of the tensors that have to travel; their values, one after another, are the body."""
        self.size_bytes = body_size(manifest, self.lacking)
        """Bytes of the body."""
        self.kept = 0
        """Bytes of the body that are here."""
        self._travels = frozenset(self.lacking)
        # Guards what follows: who was cancelled in a call leaves a thread behind, which must not write once the file is
        # closed, when its descriptor may be that of another file.
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.kept = 0
        self._index = 0  # the tensor at work,
        self._filled = 0  # how many bytes of it are here,
        self._hasher = hashlib.sha256()  # and their digest so far
        self._end = len(self._header)  # of the file

    def open(self) -> None:
        """Open the file, check what an earlier try has left in it, and copy in what need not travel.

        Raises:
            DamagedTensor: another model here is not what it was.
        """
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._check_what_is_here()
            except DamagedTensor as error:
                log.warning("what is here of a model is damaged; its download begins anew", damage=str(error))
                self._files.remove(self._path)
                self._begin_anew()
            self._descriptor = self._files.open(self._path)
            if self._end == len(self._header):
                self._files.write_at(self._descriptor, 0, self._header)
            self._fill_in()

    def take(self, chunk: Chunk) -> None:
        """Keep what is new in a chunk.

        Raises:
            TransportError: it is not the chunk that was due, or damaged.
            DamagedTensor: a tensor is whole now, and is not what its digest says.
        """
        try:
            new = admit_chunk(chunk, self.kept, self.size_bytes, limits.MAX_CHUNK_BYTES)
        except ProtocolError as error:
            raise TransportError(f"a chunk that arrived is not sound: {error}") from error
        rest = memoryview(new)
        with self._lock:
            while rest:
                piece = rest[: self._entries[self._index].size_bytes - self._filled]
                rest = rest[piece.nbytes :]
                self._write(piece)
                self._fill_in()

    def close(self) -> None:
        """Give the file back; what is in it stays. Safe to call twice, and if it was never opened."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                self._files.close(descriptor)

    def _check_what_is_here(self) -> None:
        """Go through the bytes that are there as if they had just come."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            if not self._header.startswith(file.read(len(self._header))):
                raise DamagedTensor("its header is not that of the model")
            while self._index < len(self._entries):
                left = self._entries[self._index].size_bytes - self._filled
                piece = file.read(min(left, _PIECE_BYTES))
                if left and not piece:
                    return
                self._count(piece)
            if file.read(1):
                raise DamagedTensor("it is longer than the model")

    def _fill_in(self) -> None:
        """Copy tensors that are known, up to the next that has to travel."""
        while self._index < len(self._entries) and self._index not in self._travels:
            entry, index = self._entries[self._index], self._index
            if not entry.size_bytes:
                self._count(b"")
                continue
            for piece in _pieces(self._known[entry.digest], self._filled):
                self._write(piece)
            if self._index == index:
                raise DamagedTensor(f"tensor {entry.name} is cut short where it was to be copied from")

    def _write(self, piece: bytes | memoryview) -> None:
        if self._descriptor is None:
            raise TransportError("the download was given up")
        self._files.write_at(self._descriptor, self._end, piece)
        self._count(piece)

    def _count(self, piece: bytes | memoryview) -> None:
        """Take note of bytes of the tensor at work that are in the file now; go on to the next if it is whole."""
        entry, length = self._entries[self._index], len(piece)
        self._hasher.update(piece)
        self._filled += length
        self._end += length
        if self._index in self._travels:
            self.kept += length
        if self._filled == entry.size_bytes:
            if self._hasher.digest() != entry.digest.sha256:
                raise DamagedTensor(f"tensor {entry.name} does not match its digest")
            self._index, self._filled, self._hasher = self._index + 1, 0, hashlib.sha256()


def _pieces(span: FileSpan, start: int) -> Iterator[bytes]:
    """What stands in `span` from `start` on; less, where the file is shorter than it was."""
    with span.path.open("rb", buffering=0) as file:
        file.seek(span.offset + start)
        left = span.length - start
        while left and (piece := file.read(min(left, _PIECE_BYTES))):
            yield piece
            left -= len(piece)
