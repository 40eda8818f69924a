"""Intervals against published figures, against the equations they solve, and against how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedtask import intervals
from fedtask.task import Interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, Stat. Med. 17 (1998) 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_of_published_examples_gives_the_published_limits(
    successes: int, trials: int, low: float, high: float
) -> None:
    got = intervals.wilson(successes, trials)

    assert (round(got.low, 4), round(got.high, 4)) == (low, high)


def test_wilson_at_either_end_includes_the_end_exactly() -> None:
    assert intervals.wilson(0, 7).low == 0.0
    assert intervals.wilson(7, 7).high == 1.0


def test_mean_of_two_perfect_rates_is_not_claimed_to_be_certain() -> None:
    rate = intervals.wilson(30, 30)

    got = intervals.mean_of_two(1.0, rate, 1.0, rate)

    assert got == Interval(pytest.approx(1 - (1 - rate.low) / math.sqrt(2)), 1.0)


def test_f1_interval_is_wilsons_of_the_jaccard_index_mapped() -> None:
    jaccard = intervals.wilson(40, 50)

    assert intervals.f1(40, 10) == Interval(
        pytest.approx(2 / (1 + 1 / jaccard.low)), pytest.approx(2 / (1 + 1 / jaccard.high))
    )


@pytest.mark.parametrize("area", [0.3, 0.5, 0.83, 0.97])
def test_auc_limits_solve_the_score_equation_with_hanley_and_mcneils_variance(area: float) -> None:
    m, n = 40, 25

    got = intervals.auc(area, m, n)

    assert got.low < area < got.high
    for theta in (got.low, got.high):
        q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)
        rest = (m + n) / 2 - 1
        variance = (theta * (1 - theta) + rest * (q1 - theta**2) + rest * (q2 - theta**2)) / (m * n)
        assert abs(area - theta) == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-5)


@pytest.mark.parametrize(("area", "inside"), [(1.0, 0.9), (0.0, 0.1)])
def test_auc_of_perfect_separation_has_a_width(area: float, inside: float) -> None:
    got = intervals.auc(area, 20, 20)

    assert got.low <= area <= got.high
    assert got.low < inside < got.high


def test_auc_interval_holds_the_true_area_in_about_95_of_100_draws() -> None:
    rng = np.random.default_rng(7)
    shift = 1.8123876  # of two unit normals; the area is Phi(shift / sqrt(2)) = 0.9
    draws = 500

    held = 0
    for _ in range(draws):
        positive, negative = rng.normal(shift, 1, 60), rng.normal(0, 1, 40)
        interval = intervals.auc(float((positive[:, None] > negative).mean()), 60, 40)
        held += interval.low <= 0.9 <= interval.high

    assert 0.93 <= held / draws <= 0.99


@pytest.mark.parametrize(
    ("groups", "effective"),
    [([0, 1, 2, 3], 4.0), ([5, 5, 2, 2], 2.0), ([7, 7, 7, 7], 1.0), ([0, 0, 0, 1], 16 / 10), ([3], 1.0)],
    ids=["none alike", "two pairs", "all alike", "uneven", "one"],
)
def test_effective_number_of_examples_is_that_of_groups_taken_as_one(groups: list[int], effective: float) -> None:
    assert len(groups) * intervals.effective_share(np.array(groups)) == pytest.approx(effective)


def test_wilson_of_the_effective_number_holds_the_truth_where_groups_are_right_or_wrong_as_one() -> None:
    rng = np.random.default_rng(11)
    draws, rate = 2000, 0.9
    groups = np.repeat(np.arange(40), rng.integers(1, 12, 40))
    share = intervals.effective_share(groups)

    held = {"alone": 0, "grouped": 0}
    for _ in range(draws):
        right = int((rng.random(40) < rate)[groups].sum())
        for name, each in (("alone", 1.0), ("grouped", share)):
            interval = intervals.wilson(right * each, len(groups) * each)
            held[name] += interval.low <= rate <= interval.high

    assert held["alone"] / draws < 0.75
    assert 0.93 <= held["grouped"] / draws <= 0.99


def test_mean_is_the_same_on_every_call_and_close_to_the_normal_approximation() -> None:
    values = np.random.default_rng(3).gamma(2.0, 1.0, 800)
    half = 1.96 * values.std(ddof=1) / math.sqrt(800)

    got = intervals.mean(values)

    assert got == intervals.mean(values)
    assert (got.low, got.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_mean_of_very_many_values_is_the_normal_approximation() -> None:
    values = np.random.default_rng(3).random(10_001)
    half = 1.959963984540054 * values.std(ddof=1) / math.sqrt(10_001)

    assert intervals.mean(values) == Interval(pytest.approx(values.mean() - half), pytest.approx(values.mean() + half))
