"""What tasks return by mistake, and what they are told of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedstream.dtypes import DataType
from fedstream.schema import ModelSchema, TensorSpec
from fedtask.messages import from_json, to_json
from fedtask.metrics import MOST_POINTS
from fedtask.returned import checked_evaluation, checked_files, checked_report, checked_summary, checked_tuned
from fedtask.task import EpochReport, Evaluation, FineTuned, Interval, SiteSummary, TaskError

SCHEMA = ModelSchema((TensorSpec("kernel", DataType.FLOAT32, (2, 3)), TensorSpec("bias", DataType.FLOAT32, ())))
WEIGHTS = {"kernel": np.ones((2, 3), np.float32), "bias": np.float32(1)}
TUNED = FineTuned(WEIGHTS, 10, {"loss": 0.5}, [{"loss": 0.5}])  # type: ignore[arg-type] # the bias: a scalar is taken


def test_numbers_of_numpy_become_pythons_own() -> None:
    tuned = checked_tuned(
        replace(
            TUNED,
            num_examples=np.int64(7),
            metrics={"loss": np.float32(0.5), "auc": None},
            history=[{"loss": np.ones(())}],
        ),
        SCHEMA,
    )
    assert (tuned.num_examples, tuned.metrics, tuned.history) == (7, {"loss": 0.5, "auc": None}, [{"loss": 1.0}])
    values = [tuned.num_examples, tuned.metrics["loss"], tuned.history[0]["loss"]]
    assert [type(value) for value in values] == [int, float, float]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (None, "fine_tune returned None; it must return a FineTuned"),
        ((WEIGHTS, 10), "fine_tune returned a tuple; it must"),
        (
            replace(TUNED, num_examples=-1),
            "num_examples of what fine_tune returned is -1; it must be a whole number",
        ),
        (replace(TUNED, num_examples=0), "num_examples of what fine_tune returned is 0; it must be"),
        (replace(TUNED, num_examples=1.5), "num_examples of what fine_tune returned is 1.5; it must be"),
        (replace(TUNED, weights=None), "weights of what fine_tune returned are None; they must be arrays by name"),
        (replace(TUNED, weights={"kernel": WEIGHTS["kernel"]}), "not those of the schema: .*bias"),
        (replace(TUNED, weights={**WEIGHTS, "kernel": [1.0]}), "tensor kernel of fine_tune is a list; it must be"),
        (
            replace(TUNED, weights={**WEIGHTS, "kernel": np.ones((2, 3))}),
            r"tensor kernel of fine_tune is float64 \(2, 3\); it must be float32 \(2, 3\)",
        ),
        (
            replace(TUNED, metrics={"note": "good"}),
            "note in the task's metrics is 'good'; it must be a number",
        ),
        (replace(TUNED, metrics={"loss": np.ones(3)}), "loss in the task's metrics is array"),
        (replace(TUNED, metrics=None), "the task gave None as metrics; it must give numbers by name"),
        (replace(TUNED, history=None), "history of what fine_tune returned is None; it must be a list of metrics"),
        (replace(TUNED, history=[0.5]), "the task gave a float as history; it must give numbers by name"),
    ],
)
def test_mistake_in_a_fine_tune_is_told_by_its_name(wrong: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        checked_tuned(wrong, SCHEMA)


def test_mistakes_in_an_evaluation_and_in_a_report_are_told_by_their_names() -> None:
    with pytest.raises(TaskError, match="evaluate returned a dict; it must return an Evaluation"):
        checked_evaluation({"loss": 0.5})
    with pytest.raises(TaskError, match="loss in the task's metrics is 'low'"):
        checked_evaluation(Evaluation({"loss": "low"}, 4))  # type: ignore[dict-item]
    with pytest.raises(
        TaskError, match="evaluate gave mae, mse, but neither loss nor accuracy, by which the best round"
    ):
        checked_evaluation(Evaluation({"mse": 0.5, "mae": 0.1}, 4))
    assert checked_evaluation(Evaluation({"loss": None}, 4)).metrics == {"loss": None}
    with pytest.raises(TaskError, match="the task reported None; it must report an EpochReport"):
        checked_report(None)
    assert checked_report(EpochReport("training", 1, 2, 0.5, {"loss": np.float32(0.5)})).metrics == {"loss": 0.5}


def test_evaluation_with_arrays_and_numbers_of_numpy_becomes_one_that_can_be_told() -> None:
    given: Any = Evaluation(
        {"loss": np.float32(0.5)},
        np.int64(3),
        intervals={"loss": Interval(np.float32(0.25), np.float64(0.75))},
        class_names=np.array(["no", "yes"]),  # type: ignore[arg-type]
        confusion=np.array([[1, 0], [1, 1]]),  # type: ignore[arg-type] # as scikit-learn gives it
        curves={"roc_fpr": np.array([0.0, 1.0])},  # type: ignore[dict-item]
        num_groups=np.int32(2),
    )
    told = from_json(Evaluation, to_json(checked_evaluation(given), Evaluation))
    assert (told.metrics, told.num_examples, told.num_groups) == ({"loss": 0.5}, 3, 2)
    assert (told.intervals, list(told.class_names)) == ({"loss": Interval(0.25, 0.75)}, ["no", "yes"])
    assert ([list(row) for row in told.confusion], list(told.curves["roc_fpr"])) == ([[1, 0], [1, 1]], [0.0, 1.0])


def test_curve_of_any_number_of_points_is_thinned_as_ours_are() -> None:
    given = np.linspace(0, 1, 3_000_000)
    curves: Any = {"roc_fpr": given, "roc_tpr": given**2, "short": np.arange(1000), "empty": []}
    told = checked_evaluation(Evaluation({"loss": 0.5}, 3, curves=curves)).curves
    assert [len(told[name]) for name in curves] == [MOST_POINTS, MOST_POINTS, 1000, 0]
    np.testing.assert_allclose(told["roc_fpr"], np.linspace(0, 1, MOST_POINTS), atol=1e-6)
    np.testing.assert_allclose(told["roc_tpr"], np.square(told["roc_fpr"]), atol=1e-6)
    assert list(told["short"]) == list(range(1000))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_examples": None}, "num_examples of what evaluate returned is None; it must be a whole number"),
        ({"confusion": [[0.5]]}, "a count in confusion of what evaluate returned is 0.5; it must be a whole number"),
        ({"confusion": [3]}, "a row of confusion of what evaluate returned is a int; it must be a list"),
        ({"intervals": {"loss": (0.1, 0.2)}}, r"loss in the task's intervals is \(0.1, 0.2\); it must be an Interval"),
        ({"curves": {"roc": ["a"]}}, "a value in the task's curve roc is 'a'; it must be a number"),
        ({"undefined": None}, "undefined of what evaluate returned is None; it must be by name"),
    ],
)
def test_mistake_in_an_evaluation_is_told_by_its_name(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        checked_evaluation(replace(Evaluation({"loss": 0.5}, 4), **wrong))


def test_summary_of_a_site_with_numbers_of_numpy_becomes_one_that_can_be_told() -> None:
    counts: Any = {"train": {"no": np.int64(3)}}
    summary = checked_summary(SiteSummary(np.int64(3), counts, warnings=["one"]), "open_site")  # type: ignore[arg-type]
    assert summary == SiteSummary(3, {"train": {"no": 3}}, warnings=("one",))
    assert type(summary.counts["train"]["no"]) is int


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (None, "open_site returned None; it must return a SiteSummary"),
        (SiteSummary(3, None), "counts of what open_site returned are None; they must be"),  # type: ignore[arg-type]
        (SiteSummary(3, {"train": 3}), "open_site returned a int as counts; they must be"),  # type: ignore[dict-item]
        (SiteSummary(-1, {}), "num_examples of what open_site returned is -1; it must be a whole number, 0 or more"),
        (SiteSummary(3, {"train": {"no": 1.5}}), "the count of no of what open_site returned is 1.5"),  # type: ignore[dict-item]
        (SiteSummary(3, {}, warnings="bad"), "warnings of what open_site returned are a str; they must be a list"),
    ],
)
def test_mistake_in_a_summary_is_told_by_its_name(wrong: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        checked_summary(wrong, "open_site")


def test_mistake_in_the_files_of_an_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="export returned a str; it must return a list of the files"):
        checked_files(str(tmp_path))
    with pytest.raises(TaskError, match="export returned None; it must"):
        checked_files(None)
    with pytest.raises(TaskError, match="there is no such file"):
        checked_files([tmp_path / "absent"])
    with pytest.raises(TaskError, match="export returned 3 among its files; there is no such file"):
        checked_files([3])
    (tmp_path / "model").write_bytes(b"weights")
    assert checked_files([tmp_path / "model"]) == [str(tmp_path / "model")]
