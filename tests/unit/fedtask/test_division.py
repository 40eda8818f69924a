"""fedtask.division: partitions, their skews and their errors. Takes about 2 seconds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtask.division import MIN_EXAMPLES, divide, limited
from fedtask.task import TaskError

WORDS = st.one_of(
    st.sampled_from(["even", "quantity", "quantity:0.1", "dirichlet:0.5", "dirichlet:1e-6", "dirichlet:1e-320"]),
    st.floats(0.01, 100).map(lambda alpha: f"dirichlet:{alpha}"),
)
BRAIN_MRI = np.repeat([0, 1], [577, 1200])


@settings(deadline=None)  # 200 draws take 10 ms, and longer on a busy machine
@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=120).map(lambda values: np.array(values, np.int64)),
    num_shards=st.integers(1, 12),
    division=WORDS,
    seed=st.integers(0, 2**63),
)
def test_divide_is_a_repeatable_partition_with_enough_in_each_shard(
    labels: np.ndarray, num_shards: int, division: str, seed: int
) -> None:
    if len(labels) < num_shards:
        with pytest.raises(TaskError, match="cannot be divided"):
            divide(labels, num_shards, division, seed)
        return
    shards = divide(labels, num_shards, division, seed)
    assert len(shards) == num_shards
    assert sorted(index for shard in shards for index in shard.tolist()) == list(range(len(labels)))
    assert all(shard.dtype == np.int64 and np.all(np.diff(shard) > 0) for shard in shards)
    least = len(labels) // num_shards
    assert min(len(shard) for shard in shards) >= min(least, MIN_EXAMPLES)
    again = divide(labels, num_shards, division, seed)
    assert [shard.tolist() for shard in shards] == [shard.tolist() for shard in again]


@settings(deadline=None)
@given(
    groups=st.lists(st.integers(0, 20), min_size=30, max_size=90).map(lambda values: np.array(values, np.int64)),
    num_shards=st.integers(1, 5),
    division=WORDS,
    seed=st.integers(0, 2**63),
)
def test_divide_by_groups_parts_none(groups: np.ndarray, num_shards: int, division: str, seed: int) -> None:
    labels = np.arange(len(groups)) % 2
    if len(np.unique(groups)) < num_shards:
        with pytest.raises(TaskError, match="cannot be divided"):
            divide(labels, num_shards, division, seed, groups)
        return
    shards = divide(labels, num_shards, division, seed, groups)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(groups)))
    held = [set(groups[shard].tolist()) for shard in shards]
    assert all(held)
    assert sum(map(len, held)) == len(np.unique(groups))


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=12, max_size=120).map(lambda values: np.array(values, np.int64)),
    num_shards=st.integers(1, 12),
)
def test_divide_even_differs_by_one_at_most_in_all_and_in_each_class(labels: np.ndarray, num_shards: int) -> None:
    shards = divide(labels, num_shards, "even", 0)
    counts = np.array([np.bincount(labels[shard], minlength=4) for shard in shards])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=120).map(lambda values: np.array(values, np.int64)),
    most=st.integers(0, 130),
    seed=st.integers(0, 2**63),
)
def test_limited_is_a_repeatable_choice_of_that_many_which_keeps_the_shares(
    labels: np.ndarray, most: int, seed: int
) -> None:
    chosen = limited(labels, most, seed)
    assert len(chosen) == (min(most, len(labels)) if most else len(labels))
    assert np.all(np.diff(chosen) > 0)
    assert chosen.tolist() == limited(labels, most, seed).tolist()
    exact = np.bincount(labels, minlength=4) * len(chosen) / len(labels)
    assert np.all(np.abs(np.bincount(labels[chosen], minlength=4) - exact) < 1)


def test_limited_chooses_by_the_seed() -> None:
    assert limited(BRAIN_MRI, 100, 0).tolist() != limited(BRAIN_MRI, 100, 1).tolist()


def test_divide_quantity_skews_sizes_and_keeps_the_share_of_classes() -> None:
    shards = divide(BRAIN_MRI, 4, "quantity", 1)
    sizes = [len(shard) for shard in shards]
    shares = [float(np.mean(BRAIN_MRI[shard])) for shard in shards if len(shard) > 50]
    assert max(sizes) > 3 * min(sizes)
    assert shares == pytest.approx([1200 / 1777] * len(shares), abs=0.02)


def test_divide_dirichlet_skews_more_the_smaller_alpha_is() -> None:
    def spread(alpha: str) -> float:
        """Standard deviation over shards of the share of class 1, over 20 seeds."""
        shards = [shard for seed in range(20) for shard in divide(BRAIN_MRI, 4, f"dirichlet:{alpha}", seed)]
        return float(np.std([np.mean(BRAIN_MRI[shard]) for shard in shards]))

    spreads = [spread(alpha) for alpha in ("0.1", "0.5", "5", "1000")]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] > 0.35
    assert spreads[-1] < 0.02


def test_divide_dirichlet_shares_have_the_variance_of_the_distribution() -> None:
    alpha, num_shards, labels = 5.0, 4, np.zeros(1000, np.int64)
    draws = [divide(labels, num_shards, f"dirichlet:{alpha}", seed) for seed in range(300)]
    shares = np.array([[len(shard) / 1000 for shard in shards] for shards in draws])
    # Var = a (a0 - a) / (a0^2 (a0 + 1)) with a0 = 4 a; draws with a shard under 10 of 1000 are too rare to matter.
    expected = alpha * 3 * alpha / ((4 * alpha) ** 2 * (4 * alpha + 1))
    assert shares.var() == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("division", ["even", "quantity", "dirichlet:0.5"])
def test_divide_another_seed_gives_another_division(division: str) -> None:
    first, other = (divide(BRAIN_MRI, 4, division, seed) for seed in (0, 1))
    assert [shard.tolist() for shard in first] != [shard.tolist() for shard in other]


def test_divide_hopeless_skew_is_topped_up_to_the_minimum() -> None:
    shards = divide(np.zeros(100, np.int64), 5, "dirichlet:1e-6", 0)
    assert sorted(len(shard) for shard in shards) == [10, 10, 10, 10, 60]


@pytest.mark.parametrize(
    "division",
    ["", "evenly", "even:1", "dirichlet", "dirichlet:", "dirichlet:x", "dirichlet:0", "dirichlet:-1", "dirichlet:inf",
     "dirichlet:nan", "quantity:0", "quantity:"],
)  # fmt: skip
def test_divide_unknown_word_is_refused_with_the_known_ones(division: str) -> None:
    with pytest.raises(TaskError, match=r"use even, quantity, quantity:BETA or dirichlet:ALPHA"):
        divide(BRAIN_MRI, 4, division, 0)


def test_divide_among_no_clients_is_refused() -> None:
    with pytest.raises(TaskError, match="1777 examples cannot be divided among 0 clients"):
        divide(BRAIN_MRI, 0, "even", 0)
