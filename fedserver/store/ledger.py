"""The ledger: one entry per round that is over, each with the hash of the one before.

An entry is canonical JSON: UTF-8 without white space between tokens, the keys of every object in the order of their
code points, no character escaped that JSON allows as it is, integers in decimal, every other number as the shortest
decimal that reads back as the same float64 (as Python's `repr` writes it), and neither NaN nor infinity. Its hash is
the sha256 of these bytes. Its fields are those of `Entry`.

The chain shows any change to those who know the hash of the last entry: whoever can write the file can also make the
whole chain anew. `fedserver verify` prints that hash, and the server logs it after every round.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import StringConstraints

from fedserver.store.database import Database
from fedserver.store.journal import Statement
from fedstream.manifest import Digest, ModelRef
from fedtask.adapters import adapter

FORMAT: Literal["fedstream ledger v1"] = "fedstream ledger v1"
FIRST_PREVIOUS = "0" * 64

Hex = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
"""A sha256 in lower-case hexadecimal."""

Metrics = Mapping[str, float | None]
"""Metric name to value; one that is undefined, NaN or infinite is null."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """A global model: the round that made it, 0 for the initial one, and its model digest."""

    version: int
    model_digest: Hex


@dataclass(frozen=True, slots=True)
class UpdateEntry:
    """A received update.

    `model_digest` is of its manifest; `num_examples` and `metrics` are what its client says. `weight` is what the
    strategy gives it, before normalising, null if it is not in the aggregate. `admission` is `admitted` or
    `quarantined`, the latter for `reason`.
    """

    model_digest: Hex
    num_examples: int
    weight: float | None
    admission: Literal["admitted", "quarantined"]
    reason: str
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Member:
    """One client of the cohort, and what became of its offer.

    `weight_limit` is the most that its update could weigh; together the limits fix the grid that the round was summed
    on. `epochs` and `seed` are what its plan had beyond the common one. `update` is null if none was received whole.
    """

    rank: int
    client: str
    claimed_examples: int
    weight_limit: float
    epochs: int
    seed: int
    outcome: str
    reason: str
    update: UpdateEntry | None


@dataclass(frozen=True, slots=True)
class LateUpdate:
    """An update that came after its part in the round had ended."""

    rank: int
    reason: str


@dataclass(frozen=True, slots=True)
class Scores:
    """The new model's scores on the holdout."""

    num_examples: int
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class CommonPlan:
    """The hyper-parameters offered to everybody, before each client's seed."""

    epochs: int
    batch_size: int
    learning_rate: float
    early_stopping_patience: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger says of a round.

    `previous` is the hash of the entry before; 64 zeros in the first. `closed` is by the server's wall clock, ISO 8601,
    for people only. `aggregate` is null if the round made no model. `cohort` is by rank. `late` has what was known when
    the round ended. `code` has the versions of fedstream, numpy and Python. `configuration_sha256` is of the canonical
    JSON of the settings without those that belong to the machine: `listen`, `enrol_listen`, `metrics_listen`,
    `advertise`, `client_ca`, `state`, `out` and `pictures`. `record_sha256` is of the round's record as table
    `rounds` has it.
    """

    format: Literal["fedstream ledger v1"]
    round: int
    previous: Hex
    succeeded: bool
    reason: str
    closed: str | None
    base: ModelName
    aggregate: ModelName | None
    strategy: str
    plan: CommonPlan
    min_clients: int
    reporting_goal: int
    cohort: Sequence[Member]
    late: Sequence[LateUpdate]
    evaluation: Scores | None
    evaluation_reason: str
    schema_sha256: Hex
    meaning_sha256: Hex
    code: Mapping[str, str]
    configuration_sha256: Hex
    record_sha256: Hex

    @property
    def admitted(self) -> list[tuple[Member, UpdateEntry, float]]:
        """Whose update is in the aggregate, with that update and its weight, by rank."""
        return [
            (member, member.update, member.update.weight)
            for member in self.cohort
            if member.update is not None and member.update.weight is not None
        ]


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """An entry as it is stored. `text` is its canonical JSON; `hash` was its sha256 when it was written."""

    number: int
    text: str
    hash: bytes

    def entry(self) -> Entry:
        """The entry.

        Raises:
            ValueError: it is none; the message says where.
        """
        return adapter(Entry).validate_json(self.text)


def canonical_json(fields: Mapping[str, Any]) -> str:
    """The one way to write `fields`; see the module's docstring.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def hash_of(text: str) -> bytes:
    """sha256 of an entry's bytes."""
    return hashlib.sha256(text.encode()).digest()


def appending(entry: Entry) -> Statement:
    """What makes an entry durable."""
    text = canonical_json(dataclasses.asdict(entry))
    return Statement("INSERT OR REPLACE INTO ledger VALUES (?, ?, ?)", (entry.round, text, hash_of(text)))


def last_hash(database: Database) -> str:
    """The hash of the last entry, in hexadecimal."""
    rows = database.query("SELECT hash FROM ledger ORDER BY number DESC LIMIT 1")
    return rows[0][0].hex() if rows else FIRST_PREVIOUS


def ledger(database: Database) -> list[LedgerRow]:
    """All entries, oldest first."""
    return [LedgerRow(*row) for row in database.query("SELECT number, entry, hash FROM ledger ORDER BY number")]


def methods(database: Database) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Of each round that is over: its number, strategy, and the fields of its common plan.

    The rest of the entries, which may be of a thousand clients each, is left where it is. One that cannot be read is
    passed over: `fedserver verify` says what is wrong.
    """
    sql = """
        SELECT number, json_extract(entry, '$.strategy'), json_extract(entry, '$.plan') FROM ledger
        WHERE CASE WHEN json_valid(entry) THEN json_type(entry, '$.plan') = 'object' END ORDER BY number
    """
    for number, strategy, plan in database.query(sql):
        yield number, strategy, json.loads(plan)


@dataclass(frozen=True, slots=True)
class RoundModels:
    """The models of a round that is over. `made` is `None` if it made none.

    A name that is damaged, of whose model there is no record, is `None` too: `fedserver verify` says what is wrong.
    """

    base: ModelRef | None = None
    made: ModelRef | None = None


def models_of_rounds(database: Database, first: int, last: int) -> dict[int, RoundModels]:
    """The models of the rounds from `first` to `last`, both inclusive, by number, as far as the ledger has them.

    Only the entries of these rounds are read. One that cannot be read names no models.
    """
    sql = "SELECT number, entry, hash FROM ledger WHERE number BETWEEN ? AND ?"
    return {row[0]: _models_of(database, LedgerRow(*row)) for row in database.query(sql, first, last)}


def _models_of(database: Database, row: LedgerRow) -> RoundModels:
    try:
        entry = row.entry()
    except ValueError:
        return RoundModels()
    return RoundModels(_ref_of(database, entry.base), _ref_of(database, entry.aggregate) if entry.aggregate else None)


def _ref_of(database: Database, name: ModelName) -> ModelRef | None:
    """The entry has the digest's sha256, and the manifest, which is what was hashed, its size."""
    sha256 = bytes.fromhex(name.model_digest)
    rows = database.query("SELECT length(manifest) FROM models WHERE sha256 = ?", sha256)
    return ModelRef(name.version, Digest(sha256, rows[0][0])) if rows else None
