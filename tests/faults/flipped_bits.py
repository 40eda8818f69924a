"""One bit is flipped in each kind of stored file, again and again at random places.

Of the server: a global model, a stored update, a partial upload, the database, the log that a killed server leaves
beside it, key and certificate. Of the client: an update that is kept until it is acknowledged (its tensors, its facts),
a model, a partial download, what it remembers of earlier rounds. Held if every flip is found, by whoever uses the file
next or by `fedserver verify`, and what is found names the file, the tensor or the row. A bit of the database that
changes no row (SQLite leaves room on its pages) is counted as harmless. `count` is the number of bits per kind.

    python -m tests.faults.flipped_bits --count 200 --seed 0
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog

from fedclient.memory import SiteMemory
from fedclient.models import ModelStore
from fedclient.partial import PartialModel
from fedclient.updates import UpdateStore
from fedserver.store import DamagedFile, StateReader
from fedserver.store.errors import StateError
from fedserver.store.keys import AUTHORITY_CERTIFICATE, AUTHORITY_KEY, CERTIFICATE, KEY
from fedserver.store.row_checks import register
from fedserver.verification import verify
from fedstream.errors import DigestMismatch
from fedstream.files import RealFileSystem, write_durably
from fedstream.manifest import Digest, Manifest, manifest_of
from fedstream.weights_file import WeightsFile, file_parts
from fedtask.messages import EntryRecord, LocalUpdate
from tests.faults.results import Findings, Order, run_alone
from tests.faults.sites import ClientLog, quiet_clients
from tests.support.bench import SCHEMA, Bench
from tests.support.tasks import random_weights

PROMISE = "one flipped bit in any stored file is found, and named"
_FILES = RealFileSystem()
_TABLE = re.compile(r'INSERT INTO "(\w+)"')


class Found(Exception):
    """The damage was found; the message names it."""


Trial = Callable[[Path, random.Random], Awaitable[None]]
"""Copies what it needs into an empty folder, flips a bit, uses the file; raises `Found` if that is noticed."""


@dataclass(slots=True)
class Originals:
    """Sound files to be damaged copies of."""

    state: Path
    weights: Mapping[str, np.ndarray]

    @property
    def manifest(self) -> Manifest:
        """Of `weights`."""
        return manifest_of(SCHEMA, self.weights)


def flip(path: Path, rng: random.Random) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


# The server's files.


def _verify(state: Path) -> None:
    try:
        reader = StateReader(state)
    except (StateError, sqlite3.DatabaseError) as error:
        raise Found(str(error)) from error
    try:
        verdict = verify(reader)
    except (StateError, DamagedFile, sqlite3.DatabaseError) as error:
        raise Found(str(error)) from error
    finally:
        reader.close()
    found = [*verdict.others, *(one for check in verdict.rounds for one in check.differences)]
    if found:
        raise Found("; ".join(str(difference) for difference in found))


def _stored_file(originals: Originals, pattern: str) -> Trial:
    async def trial(folder: Path, rng: random.Random) -> None:
        shutil.copytree(originals.state, folder / "state")
        path = rng.choice(sorted((folder / "state").glob(pattern)))
        _verify_naming(folder / "state", str(path.relative_to(folder / "state")), rng)

    return trial


def _database(originals: Originals) -> Trial:
    async def trial(folder: Path, rng: random.Random) -> None:
        shutil.copytree(originals.state, folder / "state")
        path = folder / "state" / "state.db"
        before = _dump(path)
        flip(path, rng)
        try:
            after = _dump(path)
        except (sqlite3.DatabaseError, UnicodeDecodeError):  # the latter from SQLite's words on names that are damaged
            after = None
        if after == before:
            raise Harmless
        _verify(folder / "state")
        raise Unnoticed(f"a change of {_changed_tables(before, after)}" if after else "that SQLite cannot read it all")

    return trial


def _write_ahead_log(originals: Originals) -> Trial:
    """The log of a server that was killed. SQLite reads it up to the first damage and forgets the rest in silence."""

    async def trial(folder: Path, rng: random.Random) -> None:
        state = folder / "state"
        shutil.copytree(originals.state, state)
        left_by = sqlite3.connect(state / "state.db", isolation_level=None)
        register(left_by)
        left_by.execute("PRAGMA journal_mode = WAL")
        for number in range(20):
            left_by.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (f"fact {number % 5}", "x" * 100 * number))
        killed = folder / "killed"
        shutil.copytree(state, killed)
        left_by.close()
        _verify_naming(killed, "state.db-wal", rng)

    return trial


def _identity_file(originals: Originals, name: str) -> Trial:
    async def trial(folder: Path, rng: random.Random) -> None:
        shutil.copytree(originals.state, folder / "state")
        _verify_naming(folder / "state", name, rng)

    return trial


def _verify_naming(state: Path, name: str, rng: random.Random) -> None:
    flip(state / name, rng)
    try:
        _verify(state)
    except Found as found:
        if name not in str(found):
            raise Unnoticed(f"that {name} is damaged, but: {found}") from found
        raise


def _changed_tables(before: list[str], after: list[str]) -> str:
    changed = set(before) ^ set(after)
    return ", ".join(sorted({table for row in changed for table in _TABLE.findall(row)[:1]})) or "something"


class Unnoticed(Exception):
    """The bit changed what is stored, and nobody says so."""


class Harmless(Exception):
    """The bit changed nothing that is stored."""


def _dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def _partial_upload(originals: Originals) -> Trial:
    async def trial(folder: Path, rng: random.Random) -> None:
        async with Bench.running(folder, "a") as bench:
            running = await bench.open_round()
            upload_id = await bench.begin("a", originals.weights)
            await bench.write(upload_id, originals.weights)
            flip(folder / "updates" / f"{upload_id}.safetensors.partial", rng)
            try:
                await bench.desk.finish(upload_id)
            except (DigestMismatch, DamagedFile) as error:
                raise Found(str(error)) from error
            finally:
                running.cancel()

    return trial


# The client's files.


def _kept_update(originals: Originals, suffix: str) -> Trial:
    async def trial(folder: Path, rng: random.Random) -> None:
        store = UpdateStore(folder / "updates", _FILES)
        path = store.weights_path("offer")
        write_durably(_FILES, path, file_parts(originals.manifest, originals.weights))
        changed = tuple(EntryRecord.of(entry) for entry in originals.manifest)
        update = LocalUpdate(changed, 10, {"loss": 0.5}, (), 1, 0.5)
        store.record("offer", 1, Digest.of(b"base"), update)
        flip(path.with_suffix(suffix), rng)
        with _log() as log:
            _require_noticed(store.load("offer") is None, log)

    return trial


def _kept_model(originals: Originals) -> Trial:
    async def trial(folder: Path, rng: random.Random) -> None:
        digest = originals.manifest.model_digest()
        path = folder / "models" / f"{digest.hex}.safetensors"
        path.parent.mkdir()
        write_durably(_FILES, path, file_parts(originals.manifest, originals.weights))
        flip(path, rng)
        store = ModelStore(folder / "models", _FILES)
        with _log() as log:
            store.load()
            _require_noticed(store.get(digest) is None, log)

    return trial


def _partial_download(originals: Originals) -> Trial:
    async def trial(folder: Path, rng: random.Random) -> None:
        manifest, path = originals.manifest, folder / "model.partial"
        path.write_bytes(b"".join(bytes(part) for part in file_parts(manifest, originals.weights)))
        flip(path, rng)
        partial = PartialModel(manifest, path, _FILES, {})
        with _log() as log:
            partial.open()
            kept = partial.kept
            partial.close()
            _require_noticed(kept == 0, log)

    return trial


def _site_memory(_originals: Originals) -> Trial:
    async def trial(folder: Path, rng: random.Random) -> None:
        path = folder / "memory.json"
        memory = SiteMemory(path, "north", _FILES)
        memory.add_history(1, [{"loss": 0.5, "accuracy": 0.75}])
        memory.save()
        flip(path, rng)
        with _log() as log:
            _require_noticed(not SiteMemory(path, "north", _FILES).rows, log)

    return trial


def _require_noticed(noticed: bool, log: ClientLog) -> None:
    if noticed:
        raise Found(f"{log.events[-1]['event']}: {log.events[-1]['damage']}")


@contextlib.contextmanager
def _log() -> Iterator[ClientLog]:
    log = ClientLog()
    with structlog.contextvars.bound_contextvars(sink=log):
        yield log


# All of them.


@dataclass(slots=True)
class Counts:
    """What became of the flips in one kind of file."""

    of: Counter[str] = field(default_factory=Counter)
    example: str = ""


async def run(order: Order, leave_out: Collection[str] = ()) -> Findings:
    """`order.count` bits in each kind of file, but for those to leave out."""
    started, rng = time.monotonic(), random.Random(order.seed)
    found = Findings("flipped_bits", PROMISE)
    with quiet_clients():
        originals = await _originals(order.folder / "original")
        trials: dict[str, Trial] = {
            "server, model": _stored_file(originals, "models/*.safetensors"),
            "server, update": _stored_file(originals, "updates/*.safetensors"),
            "server, partial upload": _partial_upload(originals),
            "server, database": _database(originals),
            "server, log of the database": _write_ahead_log(originals),
            "server, key": _identity_file(originals, KEY),
            "server, certificate": _identity_file(originals, CERTIFICATE),
            "server, authority's key": _identity_file(originals, AUTHORITY_KEY),
            "server, authority's certificate": _identity_file(originals, AUTHORITY_CERTIFICATE),
            "client, kept update, tensors": _kept_update(originals, ".safetensors"),
            "client, kept update, facts": _kept_update(originals, ".json"),
            "client, model": _kept_model(originals),
            "client, partial download": _partial_download(originals),
            "client, memory of earlier rounds": _site_memory(originals),
        }
        for kind in [kind for kind in trials if kind not in leave_out]:
            counts = await _flips(kind, trials[kind], order, rng, found)
            found.figures[kind] = dict(counts.of)
            found.figures[f"{kind}: such as"] = counts.example[:160]
    found.seconds = time.monotonic() - started
    return found


async def _flips(kind: str, trial: Trial, order: Order, rng: random.Random, found: Findings) -> Counts:
    counts = Counts()
    for _ in range(order.count):
        folder = order.folder / "trial"
        folder.mkdir()
        try:
            await trial(folder, rng)
        except Found as what:
            counts.of["found"] += 1
            counts.example = str(what).replace(str(folder), "")
        except Harmless:
            counts.of["harmless"] += 1
        except Unnoticed as error:
            counts.of["not found"] += 1
            found.problems.append(f"{kind}: nobody notices {error}")
        except Exception as error:  # noqa: BLE001 - an error that names nothing is a finding
            counts.of["unnamed"] += 1
            found.problems.append(f"{kind}: {error!r}"[:600])
        else:
            counts.of["not found"] += 1
            found.problems.append(f"{kind}: a flipped bit was not found")
        shutil.rmtree(folder)
    return counts


async def _originals(folder: Path) -> Originals:
    """A server's state after three rounds of two clients."""
    weights = random_weights(SCHEMA, 7)
    async with Bench.running(folder, "ab", min_clients=2) as bench:
        bench.state.identity(["localhost"])
        for seed in (1, 3, 5):
            await bench.play(seed, seed + 1)
    assert WeightsFile(next(iter((folder / "models").glob("*.safetensors")))).names, "there is something to damage"
    return Originals(folder, weights)


if __name__ == "__main__":
    run_alone(__doc__ or "", 50, run)
