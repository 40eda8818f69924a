from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from fedtask import drawing
from fedtask.report import Contribution, FederationRecord, RoundRecord, pictures
from fedtask.task import Evaluation, Interval
from tests.unit.fedtask.report.conftest import regression_rounds

MakeRecord = Callable[..., FederationRecord]

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

    monkeypatch.setattr(pictures, "figure", keep)
    return kept


def test_global_progress_draws_the_model_the_best_round_and_each_client(
    make_record: MakeRecord, figures: list[Figure], tmp_path: Path
) -> None:
    pictures.global_progress(make_record().rounds, 2, tmp_path / "progress.png")

    left, right = figures[0].axes
    model, best, north, south = left.get_lines()
    assert model.get_xydata().tolist() == [[1, 0.9], [2, 0.975], [3, 0.95]]
    assert best.get_xydata().tolist() == [[2, 0.975]]
    assert north.get_ydata().tolist() == [0.75, 0.75, 0.875]
    assert south.get_ydata().tolist()[:2] == [1.0, 1.0]
    assert left.get_title(loc="right") == "0.9750 in round 2"
    assert len(right.get_lines()) == 2


def test_global_progress_is_content_with_one_round_and_with_missing_scores(
    make_record: MakeRecord, figures: list[Figure], tmp_path: Path
) -> None:
    rounds = make_record().rounds

    pictures.global_progress(rounds[:1], 1, tmp_path / "one.png")
    pictures.global_progress((rounds[0], replace(rounds[1], evaluation=None), rounds[2]), 1, tmp_path / "gap.png")
    pictures.global_progress((replace(rounds[0], evaluation=None),), None, tmp_path / "none.png")

    assert [len(one.axes[0].get_lines()) for one in figures] == [4, 4, 1]
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("one.png", "gap.png", "none.png"))


def unsure(number: int, low: float) -> RoundRecord:
    """A round whose model is right in 9 of 10 cases, with an interval that begins at `low`."""
    scored = Evaluation({"loss": 0.3, "accuracy": 0.9}, 10, intervals={"accuracy": Interval(low, 0.98)})
    return RoundRecord(number, True, "", 1.0, evaluation=scored)


@pytest.mark.parametrize(
    "rounds", [[unsure(1, 0.566)], [unsure(1, 0.8), unsure(2, 0.566)]], ids=["one round", "two rounds"]
)
def test_global_progress_has_room_for_the_whole_interval(
    rounds: list[RoundRecord], figures: list[Figure], tmp_path: Path
) -> None:
    pictures.global_progress(rounds, 1, tmp_path / "progress.png")

    assert figures[0].axes[0].get_ylim()[0] == 0.5


def test_contributions_stack_the_completed_updates_only(
    make_record: MakeRecord, figures: list[Figure], tmp_path: Path
) -> None:
    pictures.contributions(make_record().rounds, tmp_path / "contributions.png")

    left, right = figures[0].axes
    assert [bar.get_height() for bar in left.patches] == [25, 25, 100, 75, 75, 0]
    assert [bar.get_height() for bar in right.patches] == [0.25, 0.25, 1.0, 0.75, 0.75, 0.0]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["south", "north"]


def test_contributions_of_many_clients_name_the_largest_and_add_up(figures: list[Figure], tmp_path: Path) -> None:
    offers = tuple(Contribution(f"site-{i:02d}", i, "completed", "", i + 1, 0.02) for i in range(50))

    pictures.contributions([RoundRecord(1, True, "", 1.0, contributions=offers)], tmp_path / "contributions.png")

    left, right = figures[0].axes
    names = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert names == ["43 others", *(f"site-{i}" for i in range(49, 42, -1))]
    assert sum(bar.get_height() for bar in left.patches) == 50 * 51 / 2
    assert sum(bar.get_height() for bar in right.patches) == pytest.approx(1.0)


def test_contributions_of_many_rounds_have_gaps_only_where_a_round_made_no_model(
    figures: list[Figure], tmp_path: Path
) -> None:
    offers = (Contribution("north", 0, "completed", "", 30, 0.75), Contribution("south", 1, "completed", "", 10, 0.25))
    rounds = [RoundRecord(n, True, "", 1.0, contributions=offers) for n in range(1, 501) if n != 250]

    pictures.contributions(rounds, tmp_path / "contributions.png")

    left, right = figures[0].axes
    for panel, boundary, top in ((left, 30, 40), (right, 0.75, 1.0)):
        north, south = panel.patches
        for shape, low, high in ((north, 0, boundary), (south, boundary, top)):
            drawn = shape.get_data()
            assert drawn.edges.tolist() == [n + 0.5 for n in range(501)]
            there = [n for n in range(1, 501) if drawn.values[n - 1] == high and drawn.baseline[n - 1] == low]
            assert there == [one.number for one in rounds]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["south", "north"]


def ticks(axis: Axis) -> list[float]:
    """Those that are seen."""
    low, high = sorted(axis.get_view_interval())
    return [float(place) for place in axis.get_majorticklocs() if low <= place <= high]


@pytest.mark.parametrize("number_of_rounds", [1, 2, 3])
@pytest.mark.parametrize("examples", [0, 1, 2, 300])
def test_contributions_have_ticks_at_rounds_that_exist_and_at_whole_examples(
    figures: list[Figure], tmp_path: Path, number_of_rounds: int, examples: int
) -> None:
    offers = (Contribution("north", 0, "completed", num_examples=examples, weight=1.0),)
    rounds = [RoundRecord(number, True, "", 1.0, contributions=offers) for number in range(1, number_of_rounds + 1)]

    pictures.contributions(rounds, tmp_path / "contributions.png")

    left, right = figures[0].axes
    assert ticks(left.xaxis) == ticks(right.xaxis) == [one.number for one in rounds]
    assert ticks(left.yaxis)
    assert all(place.is_integer() for place in ticks(left.yaxis))


def test_global_progress_without_accuracy_has_a_panel_for_each_score_that_there_is(
    figures: list[Figure], tmp_path: Path
) -> None:
    pictures.global_progress(regression_rounds(), 3, tmp_path / "all.png")
    pictures.global_progress(regression_rounds(loss=False), 3, tmp_path / "without loss.png")

    assert [[axes.get_ylabel() for axes in one.axes] for one in figures] == [["loss", "mse", "r2"], ["mse", "r2"]]
    assert [[axes.get_title(loc="left") for axes in one.axes] for one in figures] == [
        ["Loss per round", "mse per round", "r2 per round"],
        ["mse per round", "r2 per round"],
    ]
    assert figures[0].axes[2].get_lines()[0].get_xydata().tolist() == [[1, -0.5], [2, 0.25], [3, 0.5]]


def test_global_progress_names_the_loss_where_it_is_known(
    make_record: MakeRecord, figures: list[Figure], tmp_path: Path
) -> None:
    pictures.global_progress(make_record().rounds, 2, tmp_path / "named.png", "cross-entropy")
    pictures.global_progress(make_record().rounds, 2, tmp_path / "unknown.png")

    assert [one.axes[1].get_ylabel() for one in figures] == ["loss (cross-entropy)", "loss"]


def test_global_progress_has_six_panels_at_most(figures: list[Figure], tmp_path: Path) -> None:
    scored = Evaluation({f"metric {number}": float(number) for number in range(40)}, 10)

    pictures.global_progress([RoundRecord(1, True, "", 1.0, evaluation=scored)], 1, tmp_path / "progress.png")

    assert [axes.get_ylabel() for axes in figures[0].axes] == [f"metric {number}" for number in range(6)]


@pytest.mark.parametrize("number_of_rounds", [1, 2])
def test_global_progress_tells_of_intervals_only_where_there_are_any(
    figures: list[Figure], tmp_path: Path, number_of_rounds: int
) -> None:
    bare = Evaluation({"loss": 0.3, "accuracy": 0.9}, 10)
    rounds = [RoundRecord(number, True, "", 1.0, evaluation=bare) for number in range(1, number_of_rounds + 1)]

    pictures.global_progress(rounds, 1, tmp_path / "progress.png")

    told = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert told == ["global model on the holdout", "best model"]
