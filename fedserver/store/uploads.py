"""Uploads as rows: which there are, how far each is and what became of it, and the folder with their files.

`fedserver.store.upload_file` is about the bytes on their way in, `fedserver.store.updates` about those that are kept.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedserver.store.database import Database
from fedserver.store.facts import fact, remembering
from fedserver.store.journal import Statement
from fedserver.store.updates import Update, UpdateFacts
from fedserver.store.upload_file import Upload
from fedstream.files import FileSystem
from fedstream.manifest import Digest, Manifest, TensorEntry, parse_canonical
from fedtask.adapters import adapter

_COLLECTED_FACT = "updates_collected_up_to"


class UploadState(enum.Enum):
    """Where an upload stands. Legal transitions:

    AWAITING_MANIFEST -> OPEN -> ADMITTED | QUARANTINED
    AWAITING_MANIFEST, OPEN -> CLOSED (its part in the round ended first)
    CLOSED -> QUARANTINED (all of it was there by then, and it is kept aside)
    ADMITTED -> QUARANTINED (by the checks against the cohort, when the round closes)
    OPEN, ADMITTED -> AWAITING_MANIFEST (what is stored does not match its digests, and is asked for again)

    Rows have OPEN, ADMITTED and QUARANTINED only: an upload without a row awaits its manifest, and whether an open one
    is closed, its part in the round says.
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
            adapter(UpdateFacts).validate_json(facts),
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
            collected = remembering(_COLLECTED_FACT, str(max(known)))
            cursor.execute(collected.sql, collected.values)
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
                adapter(UpdateFacts).validate_json(facts),
                parse_canonical(manifest),
                json.loads(missing),
            ),
        )
        for upload_id, rank, state, reason, manifest, missing, facts in rows
    ]


def ended_upload(database: Database, upload_id: str) -> tuple[int, UploadState, str] | None:
    """Of an upload of a round that is over: size in bytes, how it ended, and why; `None` if it has not finished."""
    sql = """
        SELECT committed_size, state, reason FROM uploads JOIN rounds ON rounds.number = uploads.round
        WHERE upload_id = ? AND state IN (?, ?)
    """
    rows = database.query(sql, upload_id, UploadState.ADMITTED.value, UploadState.QUARANTINED.value)
    return (rows[0][0], UploadState(rows[0][1]), rows[0][2]) if rows else None


@dataclass(frozen=True, slots=True)
class Said:
    """What the rows of a finished upload say of it, for the ledger: nothing of single tensors."""

    rank: int
    state: UploadState
    reason: str
    model_digest: Digest
    facts: UpdateFacts


def said_of_finished(database: Database, number: int) -> list[Said]:
    """As `finished_uploads`, without taking manifests apart: of a thousand of them, that takes seconds."""
    sql = """
        SELECT rank, state, reason, manifest, facts FROM uploads JOIN participations USING (upload_id)
        WHERE uploads.round = ? AND state IN (?, ?) ORDER BY rank
    """
    rows = database.query(sql, number, UploadState.ADMITTED.value, UploadState.QUARANTINED.value)
    return [
        Said(rank, UploadState(state), reason, Digest.of(manifest), adapter(UpdateFacts).validate_json(facts))
        for rank, state, reason, manifest, facts in rows
    ]


def collected_up_to(database: Database) -> int:
    """The last round whose updates have been collected by the retention; 0 for none."""
    return int(fact(database, _COLLECTED_FACT) or 0)


def entries_of(manifest: bytes, missing: str) -> list[TensorEntry]:
    """What an upload's file holds, in order, from the columns of its row."""
    parsed = parse_canonical(manifest)
    return [parsed.entries[index] for index in json.loads(missing)]


def is_encoded(facts: str, entries: Sequence[TensorEntry]) -> bool:
    """Whether an upload of these tensors travels encoded, from the column of its row."""
    return not adapter(UpdateFacts).validate_json(facts).encoded.keys().isdisjoint(entry.name for entry in entries)


def file_of(folder: Path, upload_id: str) -> Path:
    """Where a finished update stands. `upload_id` is the server's own invention, so it may name a file."""
    return folder / f"{upload_id}.safetensors"


def beginning(upload_id: str, round_number: int, upload: Upload) -> Statement:
    """What makes a new upload's manifest durable."""
    return keeping(upload_id, round_number, upload, UploadState.OPEN, "")


def keeping(upload_id: str, round_number: int, upload: Upload, state: UploadState, reason: str) -> Statement:
    """What makes all of an upload's row durable, whether or not there is an earlier one."""
    values = (
        upload_id,
        round_number,
        upload.manifest.canonical_bytes(),
        json.dumps(upload.missing),
        adapter(UpdateFacts).dump_json(upload.facts).decode(),
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
