"""What a client keeps on disk, and what it makes of damage to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedclient.memory import SiteMemory
from fedclient.models import LocalModel, ModelStore
from fedclient.reply import Experience
from fedclient.sealed import seal
from fedclient.updates import UpdateStore
from fedstream.dtypes import DataType
from fedstream.files import RealFileSystem, write_durably
from fedstream.manifest import Digest, manifest_of
from fedstream.schema import ModelSchema, TensorSpec
from fedstream.weights_file import file_parts
from fedtask.messages import EntryRecord, LocalUpdate
from tests.support.crashing_files import CrashingFileSystem, Survival
from tests.support.full_disk import FullDisk

FILES = RealFileSystem()
SCHEMA = ModelSchema(
    (
        TensorSpec("a", DataType.FLOAT32, (3, 2)),
        TensorSpec("scalar", DataType.FLOAT64, ()),
        TensorSpec("empty", DataType.FLOAT32, (0, 4)),
        TensorSpec("b", DataType.BFLOAT16, (5,)),
    )
)
BASE = Digest(b"b" * 32, 99)


def make_weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {spec.name: rng.standard_normal(spec.shape).astype(spec.dtype.numpy) for spec in SCHEMA}


def write_weights(path: Path, seed: int) -> None:
    weights = make_weights(seed)
    write_durably(FILES, path, file_parts(manifest_of(SCHEMA, weights), weights))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


# --- Models ---


def store_at(folder: Path) -> ModelStore:
    store = ModelStore(folder, FILES)
    store.load()
    return store


def add_model(store: ModelStore, seed: int) -> LocalModel:
    """Put a whole model into the store, as a download does."""
    weights = make_weights(seed)
    manifest = manifest_of(SCHEMA, weights)
    path = store.partial_path(manifest.model_digest())
    path.write_bytes(b"".join(bytes(part) for part in file_parts(manifest, weights)))
    return store.adopt(manifest)


def test_model_store_finds_an_adopted_model_at_once_and_after_a_restart(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    model = add_model(store, 1)
    digest = manifest_of(SCHEMA, make_weights(1)).model_digest()

    assert (store.get(digest), store_at(tmp_path).get(digest)) == (model, model)
    assert [path.name for path in tmp_path.iterdir()] == [f"{digest.hex}.safetensors"]
    assert set(store.tensors()) == {entry.digest for entry in model.manifest}


def test_model_store_takes_a_partial_model_for_none_and_drops_it_when_told(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    digests = [manifest_of(SCHEMA, make_weights(seed)).model_digest() for seed in (1, 2)]
    for digest in digests:
        store.partial_path(digest).write_bytes(b"half")
    store.load()
    assert [store.get(digest) for digest in digests] == [None, None]
    store.drop_partials(digests[1])
    assert list(tmp_path.iterdir()) == [store.partial_path(digests[1])]
    store.drop_partials()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda path: flip(path, -1), truncate, empty])
def test_model_store_removes_a_model_that_is_not_what_its_name_says(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    model = add_model(store_at(tmp_path), 1)
    damage(model.path)

    assert store_at(tmp_path).get(model.digest) is None
    assert not model.path.exists()


def test_model_store_keeps_only_what_it_is_told_to(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    digests = [add_model(store, seed).digest for seed in (1, 2)]
    store.keep_only([digests[1]])

    assert [store.get(digest) is not None for digest in digests] == [False, True]
    assert [path.stem for path in tmp_path.iterdir()] == [digests[1].hex]


def test_model_store_made_durable_holds_its_models_after_a_power_cut() -> None:
    folder = Path("/models")
    files = CrashingFileSystem({})
    store = ModelStore(folder, files)
    weights = make_weights(1)
    manifest = manifest_of(SCHEMA, weights)
    whole = b"".join(bytes(part) for part in file_parts(manifest, weights))
    files.write_at(files.open(store.partial_path(manifest.model_digest())), 0, whole)
    path = store.adopt(manifest).path
    assert files.after_power_cut(Survival.SYNCED_ONLY) == {}

    store.make_durable()

    assert files.after_power_cut(Survival.SYNCED_ONLY) == {path: whole}


# --- Updates ---


def keep_update(folder: Path, offer_id: str = "offer", number: int = 3) -> UpdateStore:
    store = UpdateStore(folder, FILES)
    write_weights(store.weights_path(offer_id), 1)
    changed = tuple(EntryRecord.of(entry) for entry in manifest_of(SCHEMA, make_weights(1)))
    update = LocalUpdate(changed, 7, {"loss": 0.5, "auc": None}, ({"loss": 0.7},), 1, 2.5)
    store.record(offer_id, number, BASE, update)
    return store


def test_update_store_whose_folder_was_cleared_away_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "updates"
    store = UpdateStore(folder, FILES)
    folder.rmdir()
    store.keep_only({"offer"})
    assert folder.is_dir()
    assert store.load("offer") is None


def test_update_store_gives_back_what_was_recorded_after_a_restart(tmp_path: Path) -> None:
    keep_update(tmp_path)
    finished = UpdateStore(tmp_path, FILES).load("offer")

    assert finished is not None
    assert (finished.offer_id, finished.round, finished.base) == ("offer", 3, BASE)
    assert finished.update.metrics == {"loss": 0.5, "auc": None}
    assert finished.manifest(manifest_of(SCHEMA, make_weights(2))) == manifest_of(SCHEMA, make_weights(1))
    assert UpdateStore(tmp_path, FILES).load("another offer") is None


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize(
    "damage", [lambda path: flip(path, -3), truncate, Path.unlink, lambda path: path.write_bytes(b"")]
)
def test_update_store_forgets_an_update_that_is_damaged(
    tmp_path: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    store = keep_update(tmp_path)
    damage(next(tmp_path.glob(f"*.{kind}")))

    assert store.load("offer") is None
    assert store.load("offer") is None


@pytest.mark.parametrize("where", ["exists", "read_bytes"])
def test_update_store_on_a_disk_that_is_away_keeps_what_it_cannot_read_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    store = keep_update(tmp_path)
    kept = store.load("offer")

    def stale(path: Path) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with monkeypatch.context() as away:
        away.setattr(Path, where, stale)
        with pytest.raises(OSError, match="Stale"):
            store.load("offer")
    assert kept is not None
    assert store.load("offer") == kept


def test_update_store_without_its_sidecar_does_not_count(tmp_path: Path) -> None:
    store = UpdateStore(tmp_path, FILES)
    write_weights(store.weights_path("offer"), 1)  # the client died before it had recorded the update

    assert store.load("offer") is None


def test_update_store_told_to_discard_an_update_leaves_no_byte_of_it(tmp_path: Path) -> None:
    keep_update(tmp_path, "refused")
    store = keep_update(tmp_path, "wanted")
    write_durably(FILES, store.path("refused", "packed"), [b"encoded"])
    store.discard("refused")
    store.discard("refused")

    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {store.weights_path("wanted").stem}
    assert store.load("wanted") is not None


def test_update_store_keeps_only_one(tmp_path: Path) -> None:
    keep_update(tmp_path, "old")
    store = keep_update(tmp_path, "new")
    (tmp_path / "left.partial").write_bytes(b"half")
    store.keep_only(["new"])

    assert store.load("old") is None
    assert store.load("new") is not None
    assert len(list(tmp_path.iterdir())) == 2


def test_update_store_names_the_latest_that_is_sound_and_takes_no_other_file_for_one(tmp_path: Path) -> None:
    store = keep_update(tmp_path, "second", number=2)
    keep_update(tmp_path, "first", number=1)
    keep_update(tmp_path, "third", number=3)
    write_durably(FILES, store.path("second", "packed.json"), [b"{}"])
    assert store.latest() == store.load("third")
    flip(store.weights_path("third"), -1)

    assert store.latest() == store.load("second")
    store.keep_only([])
    assert store.latest() is None


def test_update_store_builds_no_path_from_an_offer_id(tmp_path: Path) -> None:
    assert UpdateStore(tmp_path, FILES).weights_path("../../up\0").parent == tmp_path


# --- Memory ---


def test_memory_survives_a_restart_and_a_round_done_again_replaces_what_followed(tmp_path: Path) -> None:
    memory = SiteMemory(tmp_path / "memory.json", "federation", FILES)
    for number in (1, 2, 3):
        memory.add_history(number, [{"loss": float(number)}])
    memory.learn(Experience(2.0, 1.0))
    memory.save()
    memory = SiteMemory(tmp_path / "memory.json", "federation", FILES)
    memory.add_history(2, [{"loss": 9.0}, {"loss": 8.0}])
    memory.save()
    memory = SiteMemory(tmp_path / "memory.json", "federation", FILES)

    assert list(memory.rows) == [
        {"round": 1, "epoch": 1, "loss": 1.0},
        {"round": 2, "epoch": 1, "loss": 9.0},
        {"round": 2, "epoch": 2, "loss": 8.0},
    ]
    assert memory.experience == Experience(2.0, 1.0)


def test_memory_counts_each_update_sent_once_over_a_restart_whatever_the_federation_is_called(tmp_path: Path) -> None:
    memory = SiteMemory(tmp_path / "memory.json", "federation", FILES)
    for fingerprint in ("one", "two", "two"):
        memory.note_sent(fingerprint)
    memory.add_history(1, [{"loss": 1.0}])
    memory.save()
    memory = SiteMemory(tmp_path / "memory.json", "another", FILES)

    assert (list(memory.rows), memory.experience) == ([], Experience(rounds_sent=2))
    assert (memory.has_sent("two"), memory.has_sent("three")) == (True, False)


def test_memory_that_the_disk_refused_is_saved_once_there_is_room(tmp_path: Path) -> None:
    disk = FullDisk()
    memory = SiteMemory(tmp_path / "memory.json", "federation", disk)
    memory.note_sent("one")
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        memory.save()
    disk.free()
    memory.save()

    assert SiteMemory(tmp_path / "memory.json", "federation", FILES).has_sent("one")


def test_memory_of_an_earlier_version_counts_its_rounds_on(tmp_path: Path) -> None:
    held = {"federation": "federation", "rows": [], "epoch_seconds": 2.0, "transfer_seconds": 1.0, "sent": [1, 2, 3]}
    (tmp_path / "memory.json").write_bytes(seal(held))
    memory = SiteMemory(tmp_path / "memory.json", "federation", FILES)
    memory.note_sent("one")
    assert memory.experience == Experience(2.0, 1.0, rounds_sent=4)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"federation": "other", "rows": [{}]}'])
def test_memory_that_is_damaged_or_of_another_federation_starts_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "memory.json").write_bytes(content)
    memory = SiteMemory(tmp_path / "memory.json", "federation", FILES)

    assert (list(memory.rows), memory.experience) == ([], Experience())
