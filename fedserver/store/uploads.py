"""Updates on their way in: chunks go straight to the place in a weights file where they stay.

Once the manifest is known, so is the file's header, and the body is the file's data section: finishing an upload is an
fsync and a rename, whatever its size. Methods block on the disk and are called from threads; a lock per upload keeps a
thread that outlived its cancelled call from writing to a file that was dropped meanwhile.
"""

from __future__ import annotations

import enum
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from fedserver.store.blobs import check_file, sha256_of_next
from fedserver.store.database import Database
from fedserver.store.errors import DamagedFile
from fedserver.store.journal import Statement
from fedstream import limits
from fedstream.body import body_size
from fedstream.errors import DigestMismatch, RoundClosed, WrongOffset
from fedstream.files import TEMPORARY_SUFFIX, FileSystem, publish
from fedstream.manifest import Manifest, TensorEntry, parse_canonical
from fedstream.weights_file import WeightsFile, WeightsFileError, header_of

_COLLECTED_FACT = "updates_collected_up_to"

WAY_OUT = "start `fedserver run` again, and the site is asked to send it again"
WAY_OUT_OVER = "nothing but `fedserver verify` needs it; `fedserver gc --keep-rounds 0` removes it"
"""Of an update whose round is over."""


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
    """A stored update: the file with the tensors that the server lacked, and what the client said of it.

    `manifest` is of the whole update, `missing` has the indexes in it of what the file holds.
    """

    path: Path
    facts: UpdateFacts
    manifest: Manifest
    missing: Sequence[int]

    @property
    def entries(self) -> list[TensorEntry]:
        """What the file holds, in order."""
        return [self.manifest.entries[index] for index in self.missing]

    def tensors(self) -> dict[str, np.ndarray]:
        """Its tensors, as read-only views of the mapped file.

        Raises:
            DamagedFile: the file is missing or no longer a weights file.
        """
        try:
            return WeightsFile(self.path).weights()
        except (WeightsFileError, OSError) as error:
            raise DamagedFile(self.path, f"cannot be used ({error})", WAY_OUT) from error

    def check(self) -> None:
        """Compare every byte of the file with the manifest.

        Raises:
            DamagedFile: names the tensor.
        """
        check_file(self.path, self.entries, WAY_OUT)


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
        self._lock = threading.Lock()  # guards the descriptor and the sizes; only the file system is called under it
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
        """Put all that was received on the medium; returns how much that is.

        Raises:
            OSError: the medium refused. What was not committed counts as not received: after a failed fsync the kernel
                may have thrown it away and still say yes to the next one.
        """
        with self._lock:
            if self._sealed:
                return self.size_bytes
            try:
                self._files.sync(self._opened())
                if not self._name_is_durable:
                    self._files.sync_folder(self.path.parent)  # or a power cut may take the name, and with it the bytes
                    self._name_is_durable = True
            except OSError:
                self.received_size = self.committed_size
                raise
            return self.received_size

    def committed(self, size: int) -> None:
        """Take note that so many bytes are durable, and recorded as such."""
        self.committed_size = max(self.committed_size, size)

    def wants_commit(self) -> bool:
        """Whether enough is uncommitted to be worth an fsync: half a window, so that the sender never has to stop."""
        uncommitted = self.received_size - self.committed_size
        return uncommitted >= limits.WINDOW_BYTES // 2 or (uncommitted > 0 and self.received_size == self.size_bytes)

    def verify(self) -> None:
        """Check every received tensor against its digest.

        Raises:
            DigestMismatch: one differs; the upload is to be dropped and started again.
        """
        with (self._partial if self._partial.exists() else self.path).open("rb") as file:
            if file.read(len(self._header)) != self._header:  # the server's own bytes: the disk has changed them
                message = "the file of this upload is damaged in its header; put the manifest again and start at 0"
                raise DigestMismatch(message)
            for entry in (self.manifest.entries[index] for index in self.missing):
                if sha256_of_next(file, entry.size_bytes) != entry.digest.sha256:
                    message = f"tensor {entry.name} does not match its digest; put the manifest again and start at 0"
                    raise DigestMismatch(message, tensor=entry.name)

    def seal(self) -> None:
        """Give the complete and verified file its name, durably. A second time it changes nothing."""
        with self._lock:
            if self._sealed:
                return
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
    """An upload as an earlier process left it: still open, or finished and in `state` for `reason`.

    `committed_size` is what was recorded; the upload's own is what was found.
    """

    upload_id: str
    upload: Upload
    state: UploadState
    reason: str
    committed_size: int


class UploadStore:
    """Where updates are received and kept: files in a folder, facts in the database.

    Args:
        folder: made if need be.
        database: where the facts are.
        files: the file system.
    """

    def __init__(self, folder: Path, database: Database, files: FileSystem) -> None:
        folder.mkdir(exist_ok=True, mode=0o700)
        self.folder, self._database, self._files = folder, database, files

    def begin(self, upload_id: str, manifest: Manifest, missing: Sequence[int], facts: UpdateFacts) -> Upload:
        """A new upload."""
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
        return StoredUpload(upload_id, upload, UploadState(state), reason, committed)

    def collect(self, rounds: Collection[int]) -> None:
        """Throw away these rounds' updates, rows first: a file that no row claims is litter, one missing a loss."""
        ids: list[str] = []
        with self._database.transaction() as cursor:
            for number in rounds:
                ids += [row[0] for row in cursor.execute("SELECT upload_id FROM uploads WHERE round = ?", (number,))]
                cursor.execute("DELETE FROM uploads WHERE round = ?", (number,))
                cursor.execute("DELETE FROM participations WHERE round = ?", (number,))
            known = [collected_up_to(self._database), *rounds]
            cursor.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (_COLLECTED_FACT, str(max(known))))
        for upload_id in ids:
            self._files.remove(self._path(upload_id))

    def _path(self, upload_id: str) -> Path:
        return file_of(self.folder, upload_id)


@dataclass(frozen=True, slots=True)
class FinishedUpload:
    """A finished upload of a round, by its rows alone. `rank` is the position in the round's cohort."""

    upload_id: str
    rank: int
    state: UploadState
    reason: str
    update: Update


def finished_uploads(database: Database, folder: Path, number: int) -> list[FinishedUpload]:
    """What was received and kept in a round, by rank; the files may be looked at, or not be there.

    Args:
        database: where the facts are.
        folder: where updates are kept.
        number: of the round.
    """
    sql = """
        SELECT upload_id, rank, state, reason, manifest, missing, facts
        FROM uploads JOIN participations USING (upload_id)
        WHERE uploads.round = ? AND state IN (?, ?) ORDER BY rank
    """
    rows = database.query(sql, number, UploadState.ADMITTED.value, UploadState.QUARANTINED.value)
    return [
        FinishedUpload(
            upload_id,
            rank,
            UploadState(state),
            reason,
            Update(
                file_of(folder, upload_id),
                _FACTS.validate_json(facts),
                parse_canonical(manifest),
                json.loads(missing),
            ),
        )
        for upload_id, rank, state, reason, manifest, missing, facts in rows
    ]


def collected_up_to(database: Database) -> int:
    """The last round whose updates have been collected by the retention; 0 for none."""
    rows = database.query("SELECT value FROM facts WHERE key = ?", _COLLECTED_FACT)
    return int(rows[0][0]) if rows else 0


def entries_of(manifest: bytes, missing: str) -> list[TensorEntry]:
    """What an upload's file holds, in order, from the columns of its row."""
    parsed = parse_canonical(manifest)
    return [parsed.entries[index] for index in json.loads(missing)]


def file_of(folder: Path, upload_id: str) -> Path:
    """Where a finished update stands. `upload_id` is the server's own invention, so it may name a file."""
    return folder / f"{upload_id}.safetensors"


def beginning(upload_id: str, round_number: int, upload: Upload) -> Statement:
    """What makes a new upload's manifest durable."""
    return settled(upload_id, round_number, upload, UploadState.OPEN, "")


def settled(upload_id: str, round_number: int, upload: Upload, state: UploadState, reason: str) -> Statement:
    """What makes a whole row durable, whether or not there is one."""
    values = (
        upload_id,
        round_number,
        upload.manifest.canonical_bytes(),
        json.dumps(upload.missing),
        _FACTS.dump_json(upload.facts).decode(),
        upload.committed_size,
        state.value,
        reason,
    )
    return Statement("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def committing(upload_id: str, committed_size: int) -> Statement:
    """What makes the knowledge durable that so many bytes are; written after their fsync."""
    sql = "UPDATE uploads SET committed_size = max(committed_size, ?) WHERE upload_id = ?"
    return Statement(sql, (committed_size, upload_id))


def settling(upload_id: str, state: UploadState, reason: str) -> Statement:
    """What makes the end of an upload durable."""
    return Statement("UPDATE uploads SET state = ?, reason = ? WHERE upload_id = ?", (state.value, reason, upload_id))


def resetting(upload_id: str, committed_size: int) -> Statement:
    """What makes the knowledge durable that fewer bytes are left than were recorded."""
    return Statement("UPDATE uploads SET committed_size = ? WHERE upload_id = ?", (committed_size, upload_id))


def forgetting(upload_id: str) -> Statement:
    """What makes an upload begin anew, without a manifest."""
    return Statement("DELETE FROM uploads WHERE upload_id = ?", (upload_id,))
