"""Keys and certificates of a state directory: each is remembered by its digest, and none is overwritten unknown.

A pair is made in three steps: one commit says which files are about to be there, the files are written, and one commit
remembers them and takes the first back. So a file of which nothing is remembered is what an interrupted step left, and
then the first commit names it; or the database is not the one that the file was made with. That would be a new
federation under the name of the old one, in which no site has a place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedserver.store.database import LOG_BACK, Database
from fedserver.store.errors import StateError
from fedserver.store.facts import fact, remembering
from fedstream.certificates import facts_of
from fedstream.files import FileSystem, write_durably
from fedstream.tls import Identity

KEY, CERTIFICATE = "server.key", "server.crt"
AUTHORITY_KEY, AUTHORITY_CERTIFICATE = "authority.key", "authority.crt"
IDENTITY_FILES = (AUTHORITY_KEY, AUTHORITY_CERTIFICATE, KEY, CERTIFICATE)
"""Each of them is remembered by its digest."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A private key and its certificate, by the names of their files; `way_out` is for who has no backup of them."""

    key: str
    certificate: str
    way_out: str

    def paths(self, folder: Path) -> tuple[Path, Path]:
        """Of both, in a state directory."""
        return folder / self.key, folder / self.certificate


AUTHORITY = Pair(
    AUTHORITY_KEY,
    AUTHORITY_CERTIFICATE,
    f"or remove {AUTHORITY_KEY}, {AUTHORITY_CERTIFICATE}, {KEY} and {CERTIFICATE} and invite every site anew",
)
SERVER = Pair(
    KEY,
    CERTIFICATE,
    f"or remove {KEY} and {CERTIFICATE}: sites that have joined will not notice, open invitations end",
)


SET_CLOCK = f"set the clock of this machine; if it is right, restore a backup, {AUTHORITY.way_out}"


def wrong_dates(authority: bytes, now: datetime) -> str | None:
    """Why no site trusts a server of this authority (PEM), where its dates are wrong; what to do is `SET_CLOCK`.

    They are where the clock was wrong when it was made, or is wrong now.
    """
    facts = facts_of(authority)
    if facts.begins <= now <= facts.expires:
        return None
    span = f"{facts.begins:%Y-%m-%d %H:%M} to {facts.expires:%Y-%m-%d %H:%M} UTC"
    return f"{AUTHORITY_CERTIFICATE} is for {span}, and this machine's clock says {now:%Y-%m-%d %H:%M} UTC"


def is_changed(path: Path, database: Database) -> bool:
    """Whether a key or certificate is not what was remembered of it, or gone."""
    known = _remembered(path, database)
    return known is not None and not (path.exists() and _sha256(path.read_bytes()) == known)


def require_remembered(folder: Path, database: Database) -> None:
    """Check that the database knows every key and certificate that is there.

    Raises:
        StateError: names one that it does not.
    """
    there = [(path, pair) for pair in (AUTHORITY, SERVER) for path in pair.paths(folder) if path.exists()]
    with database.snapshot():  # taken after the look at the files: a server may be making them just now
        for path, pair in there:
            if _remembered(path, database) is None and not _is_being_made(path, pair, database):
                raise StateError(f"{path} is there, and {database.path} knows nothing of it; {LOG_BACK}")


def kept_pair(
    folder: Path,
    database: Database,
    files: FileSystem,
    pair: Pair,
    make: Callable[[], Identity],
    is_outdated: Callable[[bytes], bool],
) -> Identity:
    """A key and its certificate as they are kept, or made if both are missing or the certificate is outdated.

    Raises:
        StateError: one of them is gone or not what it was, or the database knows nothing of it.
    """
    paths = pair.paths(folder)
    changed = [path for path in paths if is_changed(path, database)]
    if changed and any(path.exists() for path in paths):
        raise StateError(f"{changed[0]} is not what it was; restore a backup, {pair.way_out}")
    require_remembered(folder, database)
    is_kept = all(path.exists() and _remembered(path, database) is not None for path in paths)
    if is_kept and not is_outdated(paths[1].read_bytes()):
        return Identity(*(path.read_bytes() for path in paths))
    made = make()
    _begin(database, pair, paths, made)
    for path, contents in zip(paths, (made.key, made.certificate), strict=True):
        write_durably(files, path, [contents])
    _remember(database, pair, paths, made)
    return made


def _begin(database: Database, pair: Pair, paths: tuple[Path, Path], made: Identity) -> None:
    """Before the files are written: what may be found of this pair from now on, which is what is there and this."""
    expected = [made.key, made.certificate, *(path.read_bytes() for path in paths if path.exists())]
    begun = remembering(_begun_fact(pair), " ".join(map(_sha256, expected)))
    with database.transaction() as cursor:
        for path in paths:
            cursor.execute("DELETE FROM facts WHERE key = ?", (_digest_fact(path),))
        cursor.execute(begun.sql, begun.values)


def _remember(database: Database, pair: Pair, paths: tuple[Path, Path], made: Identity) -> None:
    with database.transaction() as cursor:
        for path, contents in zip(paths, (made.key, made.certificate), strict=True):
            remembered = remembering(_digest_fact(path), _sha256(contents))
            cursor.execute(remembered.sql, remembered.values)
        cursor.execute("DELETE FROM facts WHERE key = ?", (_begun_fact(pair),))


def _is_being_made(path: Path, pair: Pair, database: Database) -> bool:
    return _sha256(path.read_bytes()) in (fact(database, _begun_fact(pair)) or "").split()


def _remembered(path: Path, database: Database) -> str | None:
    return fact(database, _digest_fact(path))


def _sha256(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def _digest_fact(path: Path) -> str:
    return f"sha256 of {path.name}"


def _begun_fact(pair: Pair) -> str:
    return f"{pair.key} and {pair.certificate} are being made"
