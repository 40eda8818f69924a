"""Pictures are looked at by people; these tests hold the rest: that they are made, and what is drawn in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fedtask import drawing, plots
from fedtask.history import HistoryRow
from fedtask.metrics import binary_evaluation
from fedtask.task import Evaluation

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(name="figures")
def _figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn, after it was written to its file."""
    kept: list[Figure] = []

    @contextmanager
    def keep(path: Path, width: float, height: float) -> Iterator[Figure]:
        with drawing.figure(path, width, height) as made:
            yield made
        kept.append(made)

    monkeypatch.setattr(plots, "figure", keep)
    return kept


def row(number: int, epoch: int, accuracy: float | None, val_accuracy: float | None) -> HistoryRow:
    return {
        "round": number,
        "epoch": epoch,
        "loss": 0.5,
        "accuracy": accuracy,
        "val_loss": None,
        "val_accuracy": val_accuracy,
    }


def scored() -> Evaluation:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 200)
    return binary_evaluation(labels, np.clip(0.25 + 0.5 * labels + rng.normal(0, 0.2, 200), 0, 1), ("no", "yes"), "yes")


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def test_training_history_draws_one_line_per_round_and_numbers_the_rounds(
    figures: list[Figure], tmp_path: Path
) -> None:
    rows = [row(1, 1, 0.5, 0.5), row(1, 2, 0.75, 0.5), row(4, 1, 0.875, None), row(4, 2, 1.0, 0.75)]

    plots.training_history(rows, tmp_path / "history.png", "client $north")

    left, right = figures[0].axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in left.get_lines() if line.get_marker() == "s"]
    assert drawn == [([1, 2], [0.5, 0.75]), ([3, 4], [0.875, 1.0])]
    assert [text.get_text() for text in left.texts] == ["round 1", "round 4"]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["training", "validation"]
    assert not [line for line in right.get_lines() if line.get_marker() == "o"]
    assert size(tmp_path / "history.png") == (1440, 604)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(1, 1, 0.5, 0.5)],
        [row(1, 1, None, None)],
        [row(1, 1, math.nan, math.inf)],
        [row(n, e, 0.5, 0.5) for n in range(1, 71) for e in range(1, 4)],
    ],
    ids=["nothing", "one epoch", "all missing", "not finite", "seventy rounds"],
)
def test_training_history_is_content_with_little_and_with_much(rows: list[HistoryRow], tmp_path: Path) -> None:
    plots.training_history(rows, tmp_path / "history.png", "client north")

    assert size(tmp_path / "history.png") == (1440, 604)


def test_training_history_of_the_longest_name_has_its_title_beside_the_legend(
    figures: list[Figure], tmp_path: Path
) -> None:
    plots.training_history([row(1, 1, 0.5, 0.5)], tmp_path / "history.png", f"{'mannheim-' * 7}0: local training")
    [drawn] = figures
    [legend] = drawn.legends
    assert drawn._suptitle is not None
    title = drawn._suptitle.get_window_extent()
    assert drawn.bbox.x0 <= title.x0 <= title.x1 <= drawn.bbox.x1
    assert not title.overlaps(legend.get_window_extent())


def test_training_history_of_many_rounds_numbers_twelve_at_most(figures: list[Figure], tmp_path: Path) -> None:
    plots.training_history([row(n, 1, 0.5, 0.5) for n in range(1, 71)], tmp_path / "history.png", "client north")

    numbers = [text.get_text() for text in figures[0].axes[0].texts]
    assert numbers == ["1", "7", "13", "19", "25", "31", "37", "43", "49", "55", "61", "67", "round"]


def test_confusion_matrix_writes_counts_and_shares_of_the_true_class(figures: list[Figure], tmp_path: Path) -> None:
    three = Evaluation({}, 10, class_names=("a", "$b", "c"), confusion=((3, 1, 0), (0, 6, 0), (0, 0, 0)))

    plots.confusion_matrix(three, tmp_path / "confusion.png")

    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.texts] == [
        *("3\n75.0%", "1\n25.0%", "0\n0.0%"),
        *("0\n0.0%", "6\n100.0%", "0\n0.0%"),
        *("0", "0", "0"),
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a\n(n = 4)", "$b\n(n = 6)", "c\n(n = 0)"]


@pytest.mark.parametrize(
    "names",
    [
        ["no_tumour_visible", "tumour_suspected"],
        ["no sign of a tumour", "tumour is suspected"],
        ["glioma", "meningioma", "notumor", "pituitary"],
        [f"digit {number}" for number in range(10)],
        [f"organ number {number}" for number in range(20)],
    ],
)
def test_no_words_of_a_confusion_matrix_run_into_each_other(
    names: list[str], figures: list[Figure], tmp_path: Path
) -> None:
    counts = np.full((len(names), len(names)), 1234).tolist()
    plots.confusion_matrix(Evaluation({}, 10, class_names=names, confusion=counts), tmp_path / "confusion.png")
    [axes] = figures[0].axes
    labels = axes.get_xticklabels()
    if labels[0].get_rotation():
        # Those that are aslant lie beside each other as far as a line is high.
        apart = np.diff([label.get_window_extent().x1 for label in labels]).min() / math.sqrt(2)
        assert apart >= labels[0].get_fontsize() * axes.figure.dpi / 72
        labels = []
    cells = [text.get_window_extent() for text in axes.texts]
    assert len(cells) == len(names) ** 2
    boxes = [*cells, *(label.get_window_extent() for label in labels)]
    assert [1 for place, box in enumerate(boxes) if box.count_overlaps(boxes[place + 1 :])] == []


def test_confusion_matrix_of_many_classes_is_told_by_colours_alone(figures: list[Figure], tmp_path: Path) -> None:
    names = [str(number) for number in range(24)]
    plots.confusion_matrix(
        Evaluation({}, 24, class_names=names, confusion=np.eye(24, dtype=int).tolist()), tmp_path / "confusion.png"
    )
    assert list(figures[0].axes[0].texts) == []
    assert max(size(tmp_path / "confusion.png")) < 2500


def test_roc_draws_the_curve_and_tells_the_area_with_its_interval(figures: list[Figure], tmp_path: Path) -> None:
    evaluation = scored()
    interval = evaluation.intervals["auc"]

    plots.roc(evaluation, tmp_path / "roc.png")

    axes = figures[0].axes[0]
    assert np.array_equal(
        axes.get_lines()[1].get_xydata(), np.c_[evaluation.curves["roc_fpr"], evaluation.curves["roc_tpr"]]
    )
    assert axes.texts[0].get_text() == (
        f"AUC {evaluation.metrics['auc']:.4f}\n95% interval {interval.low:.4f} to {interval.high:.4f}"
    )


def binned(counts: list[float], observed: list[float]) -> Evaluation:
    """A bin for each of `counts` that is not 0, from the lowest on."""
    bins = [
        ((place + 0.5) / 10, share, count) for place, (count, share) in enumerate(zip(counts, observed, strict=True))
    ]
    predicted, shares, filled = zip(*[one for one in bins if one[2]], strict=True)
    curves = {"calibration_predicted": predicted, "calibration_observed": shares, "calibration_count": filled}
    return Evaluation({}, int(sum(counts)), curves=curves)


def points(axes: Axes, size: float) -> list[list[float]]:
    """Where `axes` has points of that size."""
    found = [line for line in axes.get_lines() if line.get_marker() == "o" and line.get_markersize() == size]
    return [point for line in found for point in line.get_xydata().tolist()]


def joined(axes: Axes) -> list[list[float]]:
    """The shares between which `axes` has a line of the model."""
    return [
        list(line.get_ydata()) for line in axes.get_lines() if line.get_marker() == "None" and line.get_zorder() > 2
    ]


def test_calibration_draws_a_point_and_a_count_per_bin(figures: list[Figure], tmp_path: Path) -> None:
    plots.calibration(
        binned([80, 0, 0, 0, 0, 40, 0, 0, 0, 2], [0.0, 0, 0, 0, 0, 0.75, 0, 0, 0, 1.0]), "yes", tmp_path / "c.png"
    )

    upper, lower = figures[0].axes
    assert (points(upper, 4.5), points(upper, 2.5)) == ([[0.05, 0.0], [0.55, 0.75]], [[0.95, 1.0]])
    assert [bar.get_height() for bar in lower.patches] == [80, 40, 2]
    assert [round(bar.get_x() + bar.get_width() / 2, 6) for bar in lower.patches] == [0.05, 0.55, 0.95]


def test_calibration_line_joins_neighbours_of_enough_examples_only(figures: list[Figure], tmp_path: Path) -> None:
    counts: list[float] = [50, 10, 9, 30, 30, 0, 30, 1, 2, 90]
    plots.calibration(binned(counts, [0.0, 0.1, 1.0, 0.3, 0.4, 0.0, 0.6, 0.0, 1.0, 0.9]), "yes", tmp_path / "c.png")

    assert joined(figures[0].axes[0]) == [[0.0, 0.1], [0.3, 0.4]]


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([20, 30], ["perfectly calibrated", "model, 95% interval"]),
        ([20, 3], ["perfectly calibrated", "model, 95% interval", "fewer than 10 examples"]),
        ([2, 3], ["perfectly calibrated", "fewer than 10 examples"]),
    ],
)
def test_calibration_legend_is_outside_the_axes_and_tells_what_is_drawn(
    figures: list[Figure], tmp_path: Path, counts: list[float], told: list[str]
) -> None:
    plots.calibration(binned(counts, [0.0, 1.0]), "yes", tmp_path / "c.png")

    [legend] = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == told
    assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figures[0].axes)
    assert [axes.get_legend() for axes in figures[0].axes] == [None, None]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("north", "north"),
        ("a\nb\tc\x1b\u200b\u2028d", "a b c   d"),
        ("x" * 40, "x" * 27 + "…"),
    ],
)
def test_shown_makes_one_short_line(given: str, expected: str) -> None:
    assert drawing.shown(given) == expected


@pytest.mark.parametrize(
    ("values", "bottom"),
    [
        ([0.57, 0.9], 0.5),
        ([0.99], 0.8),
        ([0.8], 0.7),
        ([0.7, 0.9], 0.6),
        ([0.0], 0.0),
        ([-1e308], 0.0),
        ([1.7e308], 0.8),
        ([], 0.0),
        ([math.nan], 0.0),
    ],
)
def test_share_limits_hold_any_number(values: list[float], bottom: float) -> None:
    axes = Figure().subplots()

    drawing.share_limits(axes, values)

    assert axes.get_ylim() == (bottom, 1.0 + 0.03 * (1.0 - bottom))


def test_training_history_without_accuracy_has_a_panel_for_each_metric_that_there_is(
    figures: list[Figure], tmp_path: Path
) -> None:
    rows: list[HistoryRow] = [
        {"round": 1, "epoch": 1, "accuracy": None, "mse": 4.0, "loss": 5.0, "val_mse": 6.0, "val_r2": -1.0},
        {"round": 1, "epoch": 2, "accuracy": None, "mse": 2.0, "loss": 3.0, "val_mse": 4.0, "val_r2": 0.5},
    ]

    plots.training_history(rows, tmp_path / "history.png", "client north")

    drawn = {axes.get_ylabel(): [list(line.get_ydata()) for line in axes.get_lines()] for axes in figures[0].axes}
    assert drawn == {"loss": [[5.0, 3.0]], "mse": [[4.0, 2.0], [6.0, 4.0]], "r2": [[-1.0, 0.5]]}
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["training", "validation"]


def test_training_history_calls_the_loss_by_no_name_that_it_cannot_know(figures: list[Figure], tmp_path: Path) -> None:
    plots.training_history([row(1, 1, 0.5, 0.5)], tmp_path / "history.png", "client north")

    assert [axes.get_ylabel() for axes in figures[0].axes] == ["accuracy", "loss"]


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([], 0.0, 1.0), ([0.0], 0.0, 1.0), ([0.5, math.nan], 0.0, 0.54), ([-1.0, 2.0], -1.08, 2.16), ([-1.0], -1.08, 0.0)],
)
def test_loss_limits_hold_zero_and_every_loss(values: list[float], low: float, high: float) -> None:
    axes = Figure().subplots()

    drawing.loss_limits(axes, values)

    assert axes.get_ylim() == pytest.approx((low, high))
