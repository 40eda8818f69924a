"""The whole of it, round by round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedserver.store import DamagedFile, StateReader
from fedserver.store.keys import IDENTITY_FILES, is_changed
from fedserver.store.ledger import Entry, last_hash
from fedserver.store.uploads import FinishedUpload
from fedserver.verification.chain import Books, Page, missing_entries, read_pages
from fedserver.verification.files import Shelf, as_recorded, updates_of
from fedserver.verification.findings import Difference, RoundCheck, Verdict
from fedserver.verification.recompute import recompute
from fedstream.errors import FedstreamError

_DIGEST_ONLY = "chain and model digest only"


class UnknownRoundNumber(FedstreamError):
    """No round of that number is over."""


def verify(reader: StateReader, number: int | None = None) -> Verdict:
    """Check everything, or the whole chain and of the rest one round.

    Args:
        reader: the state directory.
        number: the round; `None` for all.

    Raises:
        UnknownRoundNumber: that round is not over, or never was.
    """
    books = Books.read(reader.database)
    pages = read_pages(books)
    if number is not None and number not in {page.number for page in pages}:
        raise UnknownRoundNumber(f"round {number} is not over, or never was; the ledger has {len(pages)} rounds")
    shelf = Shelf(reader)
    rounds = [
        _check_round(reader, shelf, page) if number in (None, page.number) else _chain_alone(page) for page in pages
    ]
    others = missing_entries(books)
    if reader.database.interrupted:
        others.append(Difference(str(reader.database.path), reader.database.interrupted))
    if number is None:
        others += [*_initial_model(books, shelf), *_round_at_work(reader, books), *_identity(reader)]
    shown = [check for check in rounds if number in (None, check.number) or check.differences]
    return Verdict(shown, others, last_hash(reader.database))


def _chain_alone(page: Page) -> RoundCheck:
    return RoundCheck(page.number, "chain only", recomputed=False, differences=page.differences)


def _check_round(reader: StateReader, shelf: Shelf, page: Page) -> RoundCheck:
    if page.entry is None:
        return RoundCheck(page.number, "hash only: it cannot be read", recomputed=False, differences=page.differences)
    entry = page.entry
    # The base belongs to the round before too, which is not looked at where one round was asked for.
    found = [*page.differences, *shelf.model(entry.base.model_digest)[1]]
    uploads: Mapping[int, FinishedUpload] = {}
    reason = "its updates are no longer kept"
    kept = updates_of(reader, page.number)
    if kept is not None:
        uploads, damaged = kept
        found += [*damaged, *as_recorded(entry, uploads)]
        reason = "updates are damaged" if damaged else ""
    if entry.aggregate is None:
        words = f"chain; it made no model{f', and {reason}' if reason else ''}"
        return RoundCheck(page.number, words, recomputed=False, differences=found)
    found += shelf.model(entry.aggregate.model_digest)[1]
    if reason or any(member.rank not in uploads for member, _, _ in entry.admitted):
        words = f"{_DIGEST_ONLY}: {reason or 'updates are missing'}"
        return RoundCheck(page.number, words, recomputed=False, differences=found)
    try:
        again, words = _made_again(shelf, entry, uploads)
    except DamagedFile as error:  # gone since it was read through: collected by a server
        again, words = None, f"{_DIGEST_ONLY}: {error}"
    return RoundCheck(page.number, words, recomputed=again is not None, differences=[*found, *(again or ())])


def _made_again(
    shelf: Shelf, entry: Entry, uploads: Mapping[int, FinishedUpload]
) -> tuple[list[Difference] | None, str]:
    assert entry.aggregate is not None, "only what made a model can be made again"
    (base, _), (model, _) = shelf.model(entry.base.model_digest), shelf.model(entry.aggregate.model_digest)
    if base is None or not shelf.has_sound_file(base):
        return None, f"{_DIGEST_ONLY}: its base model is no longer kept, or damaged"
    if model is None:
        return None, "chain only: the manifest of its model is missing"
    found = list(recompute(entry, base, uploads, model, compare_values=shelf.has_sound_file(model)))
    return found, f"chain, files, and the aggregate of {len(entry.admitted)} updates made again"


def _initial_model(books: Books, shelf: Shelf) -> Iterable[Difference]:
    sha256 = books.versions.get(0)
    if sha256 is None:
        return [Difference("versions", "the initial model is missing")] if books.rows else []
    return shelf.model(sha256.hex())[1]


def _identity(reader: StateReader) -> Iterable[Difference]:
    paths = [reader.folder / name for name in IDENTITY_FILES]
    return [Difference(str(path), "it is not what it was") for path in paths if is_changed(path, reader.database)]


def _round_at_work(reader: StateReader, books: Books) -> Iterable[Difference]:
    rows = reader.database.query("SELECT number FROM open_rounds")
    at_work = (updates_of(reader, number) for (number,) in rows if number not in books.records)
    return [found for kept in at_work if kept is not None for found in kept[1]]
