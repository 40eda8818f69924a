"""What is kept and for how long, and what may go.

- Updates, admitted or quarantined, of the last `keep_rounds` rounds that are over, and of the round at work.
- Model files: the initial model, the best on each holdout (a start may be given an earlier one again) and the last,
  the base of the round at work, and of each of the last `keep_rounds` rounds the base and what came out. So each of
  these rounds can be computed again from what is kept.
- Every manifest, record and ledger entry, for ever: a few kilobytes a round.
- Files without a row are litter: an interrupted write, an upload whose round is over, a blob whose row is gone. They
  are removed at start-up, when nothing can be on its way.
- Models whose row is not only without its file but has never been are that as well, if there is but one: the step
  between a model's file and its row was interrupted. Of more, the rows were lost, and they are kept aside.

Rows go first and files second, so that a crash in between leaves litter and never a row without its file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedserver.store.database import Database
from fedserver.store.upload_file import on_their_way
from fedserver.store.uploads import UploadState
from fedstream.files import TEMPORARY_SUFFIX

SCRATCH_MODEL = "initial.safetensors"
"""Where the initial model is made, before it is stored."""

_WEIGHTS_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Expired:
    """What falls out of the retention: the rounds whose updates go, and sha256 of the models whose files go."""

    rounds: tuple[int, ...]
    models: tuple[bytes, ...]

    def __bool__(self) -> bool:
        return bool(self.rounds or self.models)


def expired(database: Database, keep_rounds: int, best: Collection[int]) -> Expired:
    """What is no longer to be kept, by the rows alone; it costs the same however many rounds there were.

    Args:
        database: the facts.
        keep_rounds: how many rounds keep their updates.
        best: the versions of the best models so far; see `fedserver.store.scores`.
    """
    oldest_kept = int(database.query("SELECT coalesce(max(number), 0) FROM rounds")[0][0]) - keep_rounds + 1
    sql = """
        SELECT round FROM participations WHERE round < ? UNION SELECT round FROM uploads WHERE round < ? ORDER BY round
    """
    rounds = database.query(sql, oldest_kept, oldest_kept)
    needed = _needed_models(database, oldest_kept, best)
    return Expired(
        rounds=tuple(number for (number,) in rounds),
        models=tuple(sha256 for sha256 in _kept_models(database) if sha256 not in needed),
    )


def _needed_models(database: Database, oldest_kept: int, best: Collection[int]) -> set[bytes]:
    rows = database.query("SELECT row FROM open_rounds")
    needed = {bytes.fromhex(json.loads(row)["base_sha256_hex"]) for (row,) in rows}
    # Models of the rounds that are kept, the base of the oldest of them, and one made for a round at work, which is
    # about to refer to it. The last model of all is among them, or is that base.
    sql = """
        SELECT sha256 FROM versions
        WHERE version IN (SELECT value FROM json_each(?))
        OR version >= (SELECT coalesce(max(version), 0) FROM versions WHERE version < ?)
    """
    return needed | {sha256 for (sha256,) in database.query(sql, json.dumps([0, *best]), oldest_kept)}


def orphans(database: Database, folder: Path) -> list[Path]:
    """Files of a state directory that no row claims. To be asked only while nothing is on its way."""
    claimed = {folder / "models" / f"{sha256.hex()}{_WEIGHTS_SUFFIX}" for sha256 in _kept_models(database)}
    claimed |= set(_claimed_by_uploads(database, folder / "updates"))
    found = [path for name in ("models", "updates") for path in sorted((folder / name).glob("*")) if path.is_file()]
    found += sorted(folder.glob(f"*{TEMPORARY_SUFFIX}"))
    found += [path for path in [folder / SCRATCH_MODEL] if path.exists()]
    return [path for path in found if path not in claimed]


def lost_models(database: Database, folder: Path) -> list[Path]:
    """Files of models that no row names, kept or not, if they are more than one interrupted step leaves."""
    named = {f"{sha256.hex()}{_WEIGHTS_SUFFIX}" for (sha256,) in database.query("SELECT sha256 FROM models")}
    found = [path for path in sorted((folder / "models").glob(f"*{_WEIGHTS_SUFFIX}")) if path.name not in named]
    return found if len(found) > 1 else []


def _kept_models(database: Database) -> list[bytes]:
    return [sha256 for (sha256,) in database.query("SELECT sha256 FROM models WHERE kept = 1 ORDER BY sha256")]


def _claimed_by_uploads(database: Database, folder: Path) -> Iterator[Path]:
    at_work = {number for (number,) in database.query("SELECT number FROM open_rounds")}
    for upload_id, number, state in database.query("SELECT upload_id, round, state FROM uploads"):
        sealed = folder / f"{upload_id}{_WEIGHTS_SUFFIX}"
        if state in (UploadState.ADMITTED.value, UploadState.QUARANTINED.value):
            yield sealed
        elif number in at_work:
            yield from (sealed, *on_their_way(sealed))
