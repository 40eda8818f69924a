"""What a client keeps on disk, and what it makes of damage to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedclient.memory import SiteMemory
from fedclient.models import DamagedTensor, ModelStore
from fedclient.reply import Experience
from fedclient.updates import UpdateStore
from fedstream.dtypes import DataType
from fedstream.files import RealFileSystem, write_durably
from fedstream.manifest import Digest, manifest_of
from fedstream.schema import ModelSchema, TensorSpec
from fedstream.weights_file import FileSpan, WeightsFile, file_parts
from fedtask.messages import EntryRecord, LocalUpdate

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


def write_weights(path: Path, seed: int) -> dict[str, FileSpan]:
    weights = make_weights(seed)
    write_durably(FILES, path, file_parts(manifest_of(SCHEMA, weights), weights))
    file = WeightsFile(path)
    return {name: file.span(name) for name in file.names}


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


def test_model_store_puts_a_model_together_and_finds_it_after_a_restart(tmp_path: Path) -> None:
    spans = write_weights(tmp_path / "source", 1)
    manifest = manifest_of(SCHEMA, make_weights(1))
    model = store_at(tmp_path / "models").add(manifest, [spans[entry.name] for entry in manifest])
    found = store_at(tmp_path / "models").get(manifest.model_digest())

    assert found == model
    read = WeightsFile(model.path).weights()
    assert {name: array.tobytes() for name, array in read.items()} == {
        name: array.tobytes() for name, array in make_weights(1).items()
    }


def test_model_store_given_wrong_bytes_adds_nothing(tmp_path: Path) -> None:
    spans = write_weights(tmp_path / "source", 1)
    manifest = manifest_of(SCHEMA, make_weights(1) | {"b": make_weights(2)["b"]})
    store = store_at(tmp_path / "models")

    with pytest.raises(DamagedTensor, match="tensor b does not match its digest"):
        store.add(manifest, [spans[entry.name] for entry in manifest])
    assert store.get(manifest.model_digest()) is None
    assert store_at(tmp_path / "models").get(manifest.model_digest()) is None


@pytest.mark.parametrize("damage", [lambda path: flip(path, -1), truncate, empty])
def test_model_store_removes_a_model_that_is_not_what_its_name_says(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    spans = write_weights(tmp_path / "source", 1)
    manifest = manifest_of(SCHEMA, make_weights(1))
    model = store_at(tmp_path / "models").add(manifest, [spans[entry.name] for entry in manifest])
    damage(model.path)

    assert store_at(tmp_path / "models").get(manifest.model_digest()) is None
    assert not model.path.exists()


def test_model_store_keeps_only_what_it_is_told_to(tmp_path: Path) -> None:
    store, digests = store_at(tmp_path / "models"), []
    for seed in (1, 2):
        spans = write_weights(tmp_path / "source", seed)
        manifest = manifest_of(SCHEMA, make_weights(seed))
        store.add(manifest, [spans[entry.name] for entry in manifest])
        digests.append(manifest.model_digest())
    store.keep_only([digests[1]])

    assert [store.get(digest) is not None for digest in digests] == [False, True]
    assert [path.stem for path in (tmp_path / "models").iterdir()] == [digests[1].hex]


# --- Updates ---


def keep_update(folder: Path, offer_id: str = "offer") -> UpdateStore:
    store = UpdateStore(folder, FILES)
    write_weights(store.weights_path(offer_id), 1)
    changed = tuple(EntryRecord.of(entry) for entry in manifest_of(SCHEMA, make_weights(1)))
    update = LocalUpdate(changed, 7, {"loss": 0.5, "auc": None}, ({"loss": 0.7},), 1, 2.5)
    store.record(offer_id, 3, BASE, update)
    return store


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


def test_update_store_without_its_sidecar_does_not_count(tmp_path: Path) -> None:
    store = UpdateStore(tmp_path, FILES)
    write_weights(store.weights_path("offer"), 1)  # the client died before it had recorded the update

    assert store.load("offer") is None


def test_update_store_keeps_only_one(tmp_path: Path) -> None:
    keep_update(tmp_path, "old")
    store = keep_update(tmp_path, "new")
    (tmp_path / "left.partial").write_bytes(b"half")
    store.keep_only(["new"])

    assert store.load("old") is None
    assert store.load("new") is not None
    assert len(list(tmp_path.iterdir())) == 2


def test_update_store_builds_no_path_from_an_offer_id(tmp_path: Path) -> None:
    assert UpdateStore(tmp_path, FILES).weights_path("../../up\0").parent == tmp_path


# --- Memory ---


def test_memory_survives_a_restart_and_a_round_done_again_replaces_what_followed(tmp_path: Path) -> None:
    memory = SiteMemory(tmp_path / "memory.json", "federation", FILES)
    for number in (1, 2, 3):
        memory.add_history(number, [{"loss": float(number)}])
    memory.learn(Experience(2.0, 1.0))
    memory = SiteMemory(tmp_path / "memory.json", "federation", FILES)
    memory.add_history(2, [{"loss": 9.0}, {"loss": 8.0}])

    assert list(memory.rows) == [
        {"round": 1, "epoch": 1, "loss": 1.0},
        {"round": 2, "epoch": 1, "loss": 9.0},
        {"round": 2, "epoch": 2, "loss": 8.0},
    ]
    assert memory.experience == Experience(2.0, 1.0)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"federation": "other", "rows": [{}]}'])
def test_memory_that_is_damaged_or_of_another_federation_starts_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "memory.json").write_bytes(content)
    memory = SiteMemory(tmp_path / "memory.json", "federation", FILES)

    assert (list(memory.rows), memory.experience) == ([], Experience())
