"""Scores of a binary classifier against their definitions, written out by brute force, and against hand-made cases."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtask.metrics import METRIC_NAMES, binary_evaluation, evaluation_from_json, evaluation_to_json, leading
from fedtask.task import Evaluation, Interval, TaskError

CLASSES = ("no", "yes")

examples = st.lists(
    st.tuples(st.integers(0, 1), st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))),
    min_size=1,
    max_size=40,
)


def evaluate(pairs: list[tuple[int, float]], positive_class: str = "yes") -> Evaluation:
    return binary_evaluation([y for y, _ in pairs], [s for _, s in pairs], CLASSES, positive_class)


def test_binary_evaluation_of_five_hand_worked_examples_gives_every_metric() -> None:
    got = binary_evaluation([1, 1, 1, 0, 0], [0.9, 0.8, 0.3, 0.6, 0.1], CLASSES, "yes")

    assert got.metrics == pytest.approx(
        {
            "loss": -(math.log(0.9) + math.log(0.8) + math.log(0.3) + math.log(0.4) + math.log(0.9)) / 5,
            "accuracy": 3 / 5,
            "balanced_accuracy": (2 / 3 + 1 / 2) / 2,
            "sensitivity": 2 / 3,
            "specificity": 1 / 2,
            "precision": 2 / 3,
            "f1": 2 / 3,
            "auc": 5 / 6,
            "brier_score": (0.01 + 0.04 + 0.49 + 0.36 + 0.01) / 5,
            "expected_calibration_error": (0.1 + 0.2 + 0.7 + 0.6 + 0.1) / 5,
        },
        rel=1e-12,
    )
    assert tuple(got.metrics) == METRIC_NAMES
    assert got.confusion == ((1, 1), (1, 2))
    assert got.num_examples == 5
    assert got.undefined == {}
    assert (got.curves["roc_fpr"], got.curves["roc_tpr"]) == (
        (0.0, 0.0, 0.5, 0.5, 1.0),
        (0.0, 2 / 3, 2 / 3, 1.0, 1.0),
    )
    assert got.curves["calibration_predicted"] == pytest.approx((0.1, 0.3, 0.6, 0.8, 0.9))
    assert got.curves["calibration_observed"] == (0.0, 1.0, 0.0, 1.0, 1.0)
    assert got.curves["calibration_count"] == (1, 1, 1, 1, 1)
    assert set(got.intervals) == set(METRIC_NAMES) - {"expected_calibration_error"}


def test_binary_evaluation_with_label_0_as_positive_class_reads_the_score_as_that_class() -> None:
    got = binary_evaluation([0, 0, 1], [0.9, 0.2, 0.1], CLASSES, "no")

    assert got.confusion == ((1, 1), (0, 1))
    assert (got.metrics["sensitivity"], got.metrics["specificity"], got.metrics["auc"]) == (0.5, 1.0, 1.0)


@given(examples)
def test_auc_equals_the_share_of_rightly_ordered_pairs(pairs: list[tuple[int, float]]) -> None:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for y, p in pairs if y for z, n in pairs if not z]

    got = evaluate(pairs).metrics["auc"]

    assert got is None if not wins else got == pytest.approx(sum(wins) / len(wins), abs=1e-12)


@given(examples)
def test_area_under_the_stored_roc_curve_equals_auc(pairs: list[tuple[int, float]]) -> None:
    got = evaluate(pairs)

    if got.metrics["auc"] is None:
        assert "roc_fpr" not in got.curves
    else:
        area = np.trapezoid(got.curves["roc_tpr"], got.curves["roc_fpr"])
        assert area == pytest.approx(got.metrics["auc"], abs=1e-12)


@given(examples)
def test_loss_brier_and_calibration_equal_their_definitions(pairs: list[tuple[int, float]]) -> None:
    got = evaluate(pairs).metrics
    n = len(pairs)
    held = [(y, min(max(s, 1e-7), 1 - 1e-7)) for y, s in pairs]
    bins = {b: [(y, s) for y, s in pairs if min(int(s * 10), 9) == b] for b in range(10)}

    assert got["loss"] == pytest.approx(sum(-math.log(s if y else 1 - s) for y, s in held) / n)
    assert got["brier_score"] == pytest.approx(sum((s - y) ** 2 for y, s in pairs) / n)
    expected = sum(abs(sum(s for _, s in b) - sum(y for y, _ in b)) for b in bins.values()) / n
    assert got["expected_calibration_error"] == pytest.approx(expected, abs=1e-12)


@given(examples)
def test_counted_metrics_equal_their_definitions_or_are_none_with_a_reason(pairs: list[tuple[int, float]]) -> None:
    got = evaluate(pairs)
    tp = sum(1 for y, s in pairs if y and s > 0.5)
    fn = sum(1 for y, s in pairs if y and s <= 0.5)
    fp = sum(1 for y, s in pairs if not y and s > 0.5)
    tn = sum(1 for y, s in pairs if not y and s <= 0.5)

    assert got.confusion == ((tn, fp), (fn, tp))
    assert got.metrics["accuracy"] == (tp + tn) / len(pairs)
    assert got.metrics["sensitivity"] == (tp / (tp + fn) if tp + fn else None)
    assert got.metrics["specificity"] == (tn / (tn + fp) if tn + fp else None)
    assert got.metrics["precision"] == (tp / (tp + fp) if tp + fp else None)
    assert got.metrics["f1"] == (2 * tp / (2 * tp + fp + fn) if tp + fn else None)
    assert {name for name, value in got.metrics.items() if value is None} == set(got.undefined)
    assert all(reason for reason in got.undefined.values())


@given(examples)
def test_every_interval_contains_its_metric_and_stays_on_the_scale(pairs: list[tuple[int, float]]) -> None:
    got = evaluate(pairs)

    for name, interval in got.intervals.items():
        value = got.metrics[name]
        assert value is not None
        assert 0.0 <= interval.low <= value + 1e-12, name
        assert interval.high >= value - 1e-12, name
        assert name == "loss" or interval.high <= 1.0, name


@given(examples)
def test_evaluation_through_json_text_comes_back_equal(pairs: list[tuple[int, float]]) -> None:
    evaluation = evaluate(pairs)

    text = json.dumps(evaluation_to_json(evaluation), allow_nan=False)

    assert evaluation_from_json(json.loads(text)) == evaluation


def test_groups_of_alike_examples_widen_intervals_as_if_each_were_there_once() -> None:
    pairs = [(0, 0.1), (0, 0.3), (0, 0.7), (1, 0.2), (1, 0.8), (1, 0.9), (1, 0.95)]
    labels, scores = ([pair[place] for pair in pairs for _ in range(3)] for place in (0, 1))
    once = evaluate(pairs)

    got = binary_evaluation(labels, scores, CLASSES, "yes", np.repeat(np.arange(7), 3))

    assert (got.num_groups, once.num_groups) == (7, 0)
    assert once.grouped_intervals == {}
    assert set(got.grouped_intervals) == set(METRIC_NAMES) - {"loss", "brier_score", "expected_calibration_error"}
    for name, interval in got.grouped_intervals.items():
        assert (interval.low, interval.high) == pytest.approx((once.intervals[name].low, once.intervals[name].high))
        assert interval.high - interval.low > got.intervals[name].high - got.intervals[name].low
    assert evaluation_from_json(json.loads(json.dumps(evaluation_to_json(got)))) == got


def test_evaluation_that_was_written_before_there_were_groups_is_read() -> None:
    document = evaluation_to_json(evaluate([(0, 0.1), (1, 0.8)]))
    del document["num_groups"], document["grouped_intervals"]

    assert evaluation_from_json(document) == evaluate([(0, 0.1), (1, 0.8)])


def test_binary_evaluation_of_one_class_only_gives_reasons() -> None:
    got = binary_evaluation([0, 0], [0.1, 0.2], CLASSES, "yes")

    assert got.undefined == {
        "sensitivity": "there are no positive examples",
        "precision": "no example was predicted as positive",
        "balanced_accuracy": "there are no positive examples",
        "f1": "there are no positive examples",
        "auc": "there are no positive examples",
    }
    assert (got.metrics["accuracy"], got.metrics["specificity"], got.metrics["auc"]) == (1.0, 1.0, None)


def test_binary_evaluation_of_no_examples_is_undefined_throughout() -> None:
    got = binary_evaluation([], [], CLASSES, "yes")

    assert got.metrics == dict.fromkeys(METRIC_NAMES)
    assert got.undefined == dict.fromkeys(METRIC_NAMES, "there are no examples")
    assert got.confusion == ((0, 0), (0, 0))


def test_loss_of_a_certain_mistake_is_clipped_at_epsilon() -> None:
    got = binary_evaluation([1], [0.0], CLASSES, "yes")

    assert got.metrics["loss"] == pytest.approx(-math.log(1e-7))
    assert "loss" not in got.intervals


def test_binary_evaluation_of_float32_scores_equals_that_of_their_float64_values() -> None:
    scores = np.array([0.1, 0.6, 0.7], dtype=np.float32)

    assert binary_evaluation([0, 1, 1], scores, CLASSES, "yes") == binary_evaluation(
        [0, 1, 1], scores.astype(np.float64), CLASSES, "yes"
    )


def test_roc_curve_of_many_examples_keeps_1000_points_and_both_ends() -> None:
    rng = np.random.default_rng(0)

    got = binary_evaluation(rng.integers(0, 2, 20_000), rng.random(20_000), CLASSES, "yes")

    fpr, tpr = got.curves["roc_fpr"], got.curves["roc_tpr"]
    assert len(fpr) == len(tpr) == 1000
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert np.trapezoid(tpr, fpr) == pytest.approx(got.metrics["auc"], abs=0.005)


@pytest.mark.parametrize(
    ("labels", "scores", "classes", "positive", "message"),
    [
        ([0, 1], [0.1, 1.5], CLASSES, "yes", "a probability, 0 to 1"),
        ([0, 2], [0.1, 0.5], CLASSES, "yes", "a label must be 0 or 1"),
        ([0, 1, 1], [0.1, 0.5], CLASSES, "yes", "one length"),
        ([[0], [1]], [[0.1], [0.5]], CLASSES, "yes", "one length"),
        ([0, 1], [0.1, 0.5], ("a", "b", "c"), "a", "two class names are needed"),
        ([0, 1], [0.1, 0.5], CLASSES, "maybe", "'maybe' one of them"),
    ],
)
def test_binary_evaluation_of_bad_input_says_what_is_wrong(
    labels: list[int], scores: list[float], classes: tuple[str, ...], positive: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        binary_evaluation(labels, scores, classes, positive)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_binary_evaluation_of_a_model_that_has_diverged_says_so(score: float) -> None:
    with pytest.raises(TaskError, match="outputs for 1 of 2 examples are NaN or infinite: the model's weights have"):
        binary_evaluation([0, 1], [0.1, score], CLASSES, "yes")


def test_evaluation_to_json_of_values_that_are_not_finite_leaves_them_out_and_says_so() -> None:
    odd = Evaluation(
        metrics={"loss": math.nan, "accuracy": np.float32(0.5)},  # type: ignore[dict-item]
        num_examples=2,
        intervals={"loss": Interval(0.0, math.inf), "accuracy": Interval(0.25, 0.75)},
        curves={"roc_fpr": [0.0, math.nan], "calibration_count": [np.int64(2)]},  # type: ignore[list-item]
    )

    got = evaluation_to_json(odd)

    reason = "the task gave a value that is not a finite number"
    assert got == {
        "metrics": {"loss": None, "accuracy": 0.5},
        "num_examples": 2,
        "intervals": {"accuracy": {"low": 0.25, "high": 0.75}},
        "undefined": {"loss": reason, "interval of loss": reason, "curve roc_fpr": reason},
        "class_names": [],
        "confusion": [],
        "curves": {"calibration_count": [2]},
        "num_groups": 0,
        "grouped_intervals": {},
    }
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (METRIC_NAMES, ["accuracy", "loss"]),
        (["accuracy"], ["accuracy"]),
        (["mse", "loss", "r2"], ["loss", "mse", "r2"]),
        (["mse"], ["mse"]),
        (list("abcdefgh"), list("abcdef")),
        ([], []),
    ],
    ids=["two classes", "accuracy alone", "regression", "no loss", "many", "none"],
)
def test_leading_metrics_are_accuracy_and_loss_or_all_of_a_task_without_accuracy(
    names: Sequence[str], expected: list[str]
) -> None:
    assert leading(names) == expected
