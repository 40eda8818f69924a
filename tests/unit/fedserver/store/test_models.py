"""Published models: stored once under their digest, found by digest and by version. A moment."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from fedserver.store import State
from fedserver.store.models import ModelStore, StoredModel
from fedstream.errors import UnknownModel
from fedstream.manifest import TensorEntry, described, manifest_of, raw_bytes
from tests.support.full_disk import FullDisk
from tests.unit.fedstream.examples import AWKWARD, random_weights, same_bits

pytestmark = pytest.mark.numpy_task


def add(models: ModelStore, version: int, weights: Mapping[str, np.ndarray]) -> StoredModel:
    return models.add(version, AWKWARD, described(AWKWARD, weights))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(tmp_path / "state")
    yield opened
    opened.close()


@pytest.fixture
def models(state: State) -> ModelStore:
    return state.models


def test_model_stored_is_named_by_its_digest_and_comes_back_bit_for_bit(models: ModelStore) -> None:
    weights = random_weights()
    manifest = manifest_of(AWKWARD, weights)
    stored = add(models, 3, weights)
    assert (stored.version, stored.digest, stored.manifest) == (3, manifest.model_digest(), manifest)
    assert stored.path.name == f"{manifest.model_digest().hex}.safetensors"
    assert same_bits(stored.weights(), weights)
    assert models.get(manifest.model_digest().sha256) == stored == models.latest() == models.of_version(3)


def test_model_body_holds_the_tensors_asked_for_in_order(models: ModelStore) -> None:
    weights = random_weights()
    stored = add(models, 1, weights)
    with stored.body([0, 2, 15]) as body:
        names = [stored.manifest.entries[index].name for index in (0, 2, 15)]
        assert body.read(0, 10_000) == b"".join(bytes(raw_bytes(weights[name])) for name in names)


def test_models_are_found_by_version_and_the_latest_is_the_highest(models: ModelStore) -> None:
    made = {version: add(models, version, random_weights(seed=version)) for version in (0, 5, 2)}
    assert {version: models.of_version(version) for version in made} == made
    assert models.latest() == made[5]


def test_model_made_again_by_a_later_round_is_both_rounds_model(models: ModelStore, tmp_path: Path) -> None:
    weights = random_weights()
    first, again = add(models, 1, weights), add(models, 2, weights)
    assert (models.of_version(1), models.of_version(2)) == (first, again)
    assert (first.digest, first.path) == (again.digest, again.path)
    assert models.get(first.digest.sha256).version == 2
    assert len(list((tmp_path / "state" / "models").iterdir())) == 1


def test_model_stored_twice_for_the_same_round_is_there_once(models: ModelStore) -> None:
    assert add(models, 1, random_weights()) == add(models, 1, random_weights()) == models.latest()


def test_model_is_asked_for_tensor_by_tensor_and_none_is_kept(models: ModelStore) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def tensors() -> Iterator[tuple[TensorEntry, np.ndarray]]:
        nonlocal most
        for entry, values in described(AWKWARD, random_weights()):
            own = values.copy()
            alive.append(weakref.ref(own))
            most = max(most, sum(ref() is not None for ref in alive))
            yield entry, own

    models.add(1, AWKWARD, tensors())
    assert len(alive) == len(AWKWARD)
    assert most <= 3  # of 18: the one at work, its predecessor, and what a loop's variable still names


@pytest.mark.parametrize("fails_at", range(1, 24))
def test_model_stored_again_after_the_disk_refused_any_step_is_whole_and_alone(tmp_path: Path, fails_at: int) -> None:
    disk = FullDisk()
    state = State(tmp_path / "state", disk)
    disk.fill(1, start=disk.steps + fails_at)
    for _ in range(2):
        with contextlib.suppress(OSError):
            add(state.models, 1, random_weights())
    stored = add(state.models, 1, random_weights())
    assert [path.name for path in (tmp_path / "state" / "models").iterdir()] == [stored.path.name]
    stored.check()
    state.close()


def test_model_that_was_being_written_when_the_process_ended_is_swept(models: ModelStore, state: State) -> None:
    stored = add(models, 1, random_weights())
    power = Interrupted()

    def tensors() -> Iterator[tuple[TensorEntry, np.ndarray]]:
        yield from itertools.islice(described(AWKWARD, random_weights(seed=2)), 5)
        raise power

    with pytest.raises(Interrupted):
        models.add(2, AWKWARD, tensors())
    [left] = set(stored.path.parent.iterdir()) - {stored.path}
    assert state.sweep() == [left]
    assert list(stored.path.parent.iterdir()) == [stored.path]


class Interrupted(Exception):
    """Whatever ends a process."""


def test_model_of_too_few_tensors_is_not_stored(models: ModelStore) -> None:
    with pytest.raises(ValueError, match="zip"):
        models.add(1, AWKWARD, itertools.islice(described(AWKWARD, random_weights()), 5))
    assert models.latest() is None


def test_store_without_models_has_no_latest(models: ModelStore) -> None:
    assert models.latest() is None


@pytest.mark.parametrize("sha256", [b"", b"\x00" * 32, b"../../../etc/passwd", b"' OR 1=1 --"])
def test_model_that_was_not_published_is_unknown(models: ModelStore, sha256: bytes) -> None:
    add(models, 1, random_weights())
    with pytest.raises(UnknownModel, match="use the base model of the current offer"):
        models.get(sha256)


def test_model_that_is_no_longer_kept_is_not_given_and_still_known(models: ModelStore) -> None:
    stored = add(models, 1, random_weights(AWKWARD, 1))
    models.collect([stored.digest.sha256])
    with pytest.raises(UnknownModel, match="use the base model of the current offer"):
        models.get(stored.digest.sha256)
    assert models.of_digest(stored.digest.sha256).manifest == stored.manifest
    assert not stored.path.exists()


def test_model_of_a_round_that_made_none_is_unknown_by_its_number(models: ModelStore) -> None:
    with pytest.raises(UnknownModel, match="no global model came out of round 7"):
        models.of_version(7)


def test_models_are_there_for_the_next_process(models: ModelStore, state: State, tmp_path: Path) -> None:
    stored = add(models, 4, random_weights())
    state.close()
    reopened = State(tmp_path / "state")
    try:
        assert reopened.models.latest() == stored
        assert same_bits(stored.weights(), random_weights())
    finally:
        reopened.close()


def test_model_asked_for_again_has_its_manifest_read_once_and_a_changed_row_is_read_anew(
    state: State, models: ModelStore
) -> None:
    stored = add(models, 1, random_weights())
    first, second = models.of_version(1), models.get(stored.digest.sha256)
    assert first.manifest is second.manifest
    with state.database.transaction() as cursor:
        cursor.execute("UPDATE models SET manifest = ?", (b"fedstream model v1\n",))
    with pytest.raises(UnknownModel):
        models.get(stored.digest.sha256)
