"""fedtask.images.split: shares, groups and repeatability. Takes about a second."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtask.images.split import is_near, joined, stratified_split


def led(groups: list[int]) -> np.ndarray:
    """Groups as `stratified_split` takes them, by the smallest index of each."""
    return np.array([groups.index(group) for group in groups], np.int64)


def test_split_takes_the_fraction_of_each_class() -> None:
    labels = np.repeat([0, 1], [100, 300])
    train, val = stratified_split(labels, led(list(range(400))), seed=3)
    assert np.bincount(labels[val]).tolist() == [15, 45]
    assert np.bincount(labels[train]).tolist() == [85, 255]


def test_split_depends_on_the_seed_and_on_nothing_else() -> None:
    labels, groups = np.repeat([0, 1], 50), led(list(range(100)))
    first, again, other = (stratified_split(labels, groups, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_split_of_one_large_group_and_a_single_image_validates_on_the_single_image() -> None:
    labels = np.zeros(9, np.int64)
    train, val = stratified_split(labels, led([0] * 8 + [1]), seed=0)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2, 3, 4, 5, 6, 7], [8])


def test_split_of_groups_that_are_all_too_large_validates_on_the_smallest() -> None:
    train, val = stratified_split(np.zeros(9, np.int64), led([0] * 4 + [1] * 2 + [2] * 3), seed=0)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2, 3, 6, 7, 8], [4, 5])


@pytest.mark.parametrize("groups", [[0, 1], [0, 0, 0, 1, 2, 2]])
def test_split_leaves_a_class_something_to_train_on_however_much_is_for_validation(groups: list[int]) -> None:
    train, val = stratified_split(np.zeros(len(groups), np.int64), led(groups), seed=0, val_fraction=0.99)
    assert len({groups[image] for image in train}) == 1
    assert sorted([*train, *val]) == list(range(len(groups)))


def test_split_of_a_class_of_one_group_keeps_it_for_training() -> None:
    train, val = stratified_split(np.array([0, 0, 1]), led([0, 0, 1]), seed=0)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2], [])


@settings(deadline=None)  # the machine may be busy
@given(
    images=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), max_size=60),
    seed=st.integers(0, 2**32),
)
def test_split_is_a_partition_that_keeps_groups_together(images: list[tuple[int, int]], seed: int) -> None:
    labels = np.array([label for label, _ in images], np.int64)
    groups = led([group for _, group in images])
    train, val = stratified_split(labels, groups, seed)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(images)))
    assert not set(groups[train].tolist()) & set(groups[val].tolist())
    assert len(train) or not len(images)


def test_joined_groups_part_none_of_either() -> None:
    assert joined(np.array([0, 0, 2, 3, 4]), np.array([9, 5, 5, 7, 8])).tolist() == [0, 0, 0, 3, 4]
    assert joined(np.array([], np.int64), np.array([], np.int64)).tolist() == []


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=40))
def test_joined_groups_are_the_finest_that_part_none_of_either(pairs: list[tuple[int, int]]) -> None:
    groups, others = (np.array([pair[place] for pair in pairs], np.int64) for place in (0, 1))
    found = joined(groups, others)
    reachable = (groups[:, None] == groups) | (others[:, None] == others)
    for _ in pairs:
        reachable = reachable @ reachable
    assert found.tolist() == [int(np.flatnonzero(row)[0]) for row in reachable]


def test_split_is_near_with_half_to_twice_of_each_class() -> None:
    labels = np.repeat([0, 2], [20, 40])
    assert is_near(labels, np.array([0, 1, 20, 21, 22, 59]), 0.15)
    assert not is_near(labels, np.array([0, 20, 21, 22, 59]), 0.15)
    assert not is_near(labels, np.arange(40), 0.15)
    assert is_near(np.array([], np.int64), np.array([], np.int64))
