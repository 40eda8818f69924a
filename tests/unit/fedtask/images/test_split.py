"""fedtask.images.split: shares, groups and repeatability. Takes about a second."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtask.images.near_duplicates import near_groups
from fedtask.images.split import stratified_split


def prints_of_groups(groups: list[int]) -> np.ndarray:
    """Fingerprints that are equal within a group and far apart between groups."""
    unlike = np.random.default_rng(0).integers(0, 2**63, (max(groups, default=0) + 1, 4), dtype=np.uint64)
    return unlike[np.array(groups, np.int64)]


def test_split_takes_the_fraction_of_each_class() -> None:
    labels = np.repeat([0, 1], [100, 300])
    train, val = stratified_split(labels, prints_of_groups(list(range(400))), seed=3)
    assert np.bincount(labels[val]).tolist() == [15, 45]
    assert np.bincount(labels[train]).tolist() == [85, 255]


def test_split_depends_on_the_seed_and_on_nothing_else() -> None:
    labels, prints = np.repeat([0, 1], 50), prints_of_groups(list(range(100)))
    first, again, other = (stratified_split(labels, prints, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_split_of_one_large_group_and_a_single_image_validates_on_the_single_image() -> None:
    labels = np.zeros(9, np.int64)
    train, val = stratified_split(labels, prints_of_groups([0] * 8 + [1]), seed=0)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2, 3, 4, 5, 6, 7], [8])


def test_split_of_a_class_of_one_group_keeps_it_for_training() -> None:
    train, val = stratified_split(np.array([0, 0, 1]), prints_of_groups([0, 0, 1]), seed=0)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2], [])


@settings(deadline=None)  # the machine may be busy
@given(
    images=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), max_size=60),
    seed=st.integers(0, 2**32),
)
def test_split_is_a_partition_that_keeps_groups_together(images: list[tuple[int, int]], seed: int) -> None:
    labels = np.array([label for label, _ in images], np.int64)
    prints = prints_of_groups([group for _, group in images])
    train, val = stratified_split(labels, prints, seed)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(images)))
    groups = near_groups(prints)
    assert not set(groups[train].tolist()) & set(groups[val].tolist())
    assert len(train) or not len(images)
