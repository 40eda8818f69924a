"""Features of the frozen part, kept. Takes about 10 seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from fedtask.brain_mri.activations import BATCH, Activations, DiskStore, MemoryStore
from fedtask.brain_mri.model import build_network
from fedtask.brain_mri.settings import read_brain_mri_settings
from fedtask.images.site import open_holdout
from fedtask.keras_model import read_weights
from tests.support.brain_mri import SMALL


@pytest.fixture(scope="module")
def network():
    return build_network(read_brain_mri_settings(SMALL))


@pytest.fixture(scope="module")
def images(phantom):
    return open_holdout(phantom / "train", {}, ("no", "yes"), 64)[0]


def activations_in(network, store) -> Activations:
    activations = Activations(network, store, strength=1.0)
    activations.use(read_weights(network.full))
    return activations


def quietly(_done: float) -> None:
    """Progress nobody reads."""


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else DiskStore(tmp_path)


def test_prepared_features_are_those_of_the_network_to_half_precision(network, images, store):
    activations = activations_in(network, store)
    activations.prepare(images, 2, quietly)
    assert activations.missing(images, 2) == []
    pixels = images.load([7, 3]).astype(np.float32)
    plain = np.asarray(network.lower(pixels, training=False))
    mirrored = np.asarray(network.lower(pixels[:, :, ::-1], training=False))
    tolerance = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(activations.batch(images, [(7, 0), (3, 0)]).astype(np.float32), plain, **tolerance)
    np.testing.assert_allclose(activations.batch(images, [(7, 1), (3, 1)]).astype(np.float32), mirrored, **tolerance)


def test_features_do_not_depend_on_which_others_were_missing(network, images):
    all_at_once, one_by_one = (activations_in(network, MemoryStore()) for _ in range(2))
    all_at_once.prepare(images, 3, quietly)
    chosen = [(33, 2), (1, 0), (12, 1)]
    together = all_at_once.batch(images, chosen)
    alone = [one_by_one.batch(images, [pair])[0] for pair in chosen]
    assert len(images) > BATCH
    np.testing.assert_array_equal(together, np.stack(alone))


def test_variants_differ_from_one_another_and_are_the_same_each_time(network, images):
    first, second = (activations_in(network, MemoryStore()).batch(images, [(0, v) for v in range(4)]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len({features.tobytes() for features in first}) == 4


def test_features_on_disk_serve_another_process_and_other_weights_get_their_own(network, images, tmp_path):
    activations_in(network, DiskStore(tmp_path)).prepare(images, 1, quietly)
    later = activations_in(network, DiskStore(tmp_path))
    assert later.missing(images, 1) == []
    weights = read_weights(network.full)
    weights["head/kernel"] = weights["head/kernel"] + 1
    later.use(weights)
    assert later.missing(images, 1) == []
    weights["Conv1/kernel"] = weights["Conv1/kernel"] + 1
    later.use(weights)
    assert len(later.missing(images, 1)) == len(images)


def test_features_of_weights_that_are_not_used_any_more_go(network, images, store):
    activations = activations_in(network, store)
    weights = read_weights(network.full)
    few = images.subset([0, 1, 2])
    for number in range(3):
        weights["Conv1/kernel"] = weights["Conv1/kernel"] + number
        activations.use(weights)
        activations.prepare(few, 2, quietly)
        kept = store._kept if isinstance(store, MemoryStore) else list(store._folder.rglob("*.f16"))
        assert len(kept) == 6


def test_features_on_disk_are_for_their_owner_alone(network, images, tmp_path):
    activations_in(network, DiskStore(tmp_path / "cache" / "activations")).prepare(images.subset([0]), 1, quietly)
    [path] = tmp_path.rglob("*.f16")
    rights = [place.stat().st_mode & 0o777 for place in (path, path.parent, path.parent.parent)]
    assert rights == [0o600, 0o700, 0o700]


def test_disk_with_little_space_left_is_not_filled_and_memory_stands_in(network, images, tmp_path, capsys):
    activations = activations_in(network, DiskStore(tmp_path, least_free_bytes=2**60))
    activations.prepare(images.subset([0, 1]), 1, quietly)
    assert list(tmp_path.rglob("*.f16")) == []
    assert "features are kept in memory" in capsys.readouterr().err
    assert activations.missing(images.subset([0, 1]), 1) == []


def test_features_of_no_images_are_an_empty_batch(network, images, tmp_path):
    activations = activations_in(network, MemoryStore())
    assert activations.batch(images, []).shape == (0, *activations.batch(images, [(0, 0)]).shape[1:])


def put_a_file_in_place_of_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_bytes(b"")


def put_a_folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [put_a_file_in_place_of_the_folder, put_a_folder_in_place])
def test_features_that_the_disk_does_not_give_are_computed_once_more_and_kept_in_memory(
    network, images, tmp_path, spoil
):
    activations, one = activations_in(network, DiskStore(tmp_path)), images.subset([0])
    whole = activations.batch(one, [(0, 0)])
    [path] = tmp_path.rglob("*.f16")
    spoil(path)
    assert activations.missing(one, 1) == [(0, 0)]
    np.testing.assert_array_equal(activations.batch(one, [(0, 0)]), whole)
    assert activations.missing(one, 1) == []


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-2], lambda b: b"", lambda b: bytes(len(b)), lambda b: b[:9] + b"x" + b[10:]]
)
def test_damaged_file_is_computed_again(network, images, tmp_path, damage):
    activations = activations_in(network, DiskStore(tmp_path))
    whole = activations.batch(images, [(0, 0)])
    [path] = tmp_path.rglob("*.f16")
    path.write_bytes(damage(path.read_bytes()))
    assert activations.missing(images.subset([0]), 1) == [(0, 0)]
    np.testing.assert_array_equal(activations.batch(images, [(0, 0)]), whole)
    assert activations.missing(images.subset([0]), 1) == []


def test_memory_store_keeps_no_more_than_its_budget():
    store = MemoryStore(budget_bytes=10)
    store.put("one", np.zeros(4, np.float16))
    store.put("two", np.zeros(4, np.float16))
    assert store.get("one") is not None
    assert store.get("two") is None
