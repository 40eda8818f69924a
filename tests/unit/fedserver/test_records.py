"""What the report is told of a federation that is over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest
from structlog.testing import capture_logs

from fedserver.config import ServerConfig
from fedserver.holdout import holdout_id
from fedserver.records import federation_record
from fedserver.store.scores import best_versions, comparable
from fedtask.report import FederationRecord
from fedtask.task import ReportWords
from tests.support.bench import Bench

pytestmark = pytest.mark.numpy_task


async def test_record_calls_examples_and_loss_what_the_task_calls_them(tmp_path: Path) -> None:
    async with Bench.running(tmp_path) as bench:
        described = bench.federation.description
        assert described is not None
        plain = federation_record(bench.federation, "all rounds done", None, None, [])
        bench.federation.description = replace(described, report_words=ReportWords("image", "cross-entropy"))
        named = federation_record(bench.federation, "all rounds done", None, None, [])

    assert (plain.unit, plain.loss_name) == ("example", "")
    assert (named.unit, named.loss_name) == ("image", "cross-entropy")


@pytest.mark.parametrize(
    ("accuracies", "words"), [((0.5,), "accuracy on the holdout, then loss"), ((), "being the last")]
)
async def test_record_says_by_what_the_best_round_was_chosen(
    tmp_path: Path, accuracies: tuple[float, ...], words: str
) -> None:
    async with Bench.running(tmp_path, "a", accuracies=accuracies) as bench:
        await bench.play(1)
        record = federation_record(bench.federation, "all rounds done", None, None, [])

    assert (record.best_round, record.best_chosen_by) == (1, words)


def holdout(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return str(folder)


async def scored(folder: Path, accuracy: float, place: str | None, number: int) -> tuple[FederationRecord, int]:
    """A server's life with one round on that holdout: its report's record, and the best round's version by then."""
    async with Bench.running(folder, "a", accuracies=[accuracy] if place else [], holdout=place) as bench:
        await bench.play(number)
        best = bench.federation.scoreboard.best
        assert best is not None
        assert best.version in best_versions(bench.federation.history)
        return federation_record(bench.federation, "all rounds done", None, None, []), best.version


async def test_scores_of_another_holdout_are_not_compared_and_the_report_says_so(tmp_path: Path) -> None:
    first, other = holdout(tmp_path / "1", "no/a", "yes/b"), holdout(tmp_path / "2", "no/a", "yes/c", "yes/d")
    moved = holdout(tmp_path / "moved", "no/a", "yes/b")
    state = tmp_path / "state"

    assert await scored(state, 0.9, first, 1) == (ANY, 1)
    same, best = await scored(state, 0.8, moved, 2)
    assert (same.notes, same.best_round, best) == ((), 1, 1)
    with capture_logs() as logs:
        changed, best = await scored(state, 0.7, other, 3)
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == [
        "the holdout is another than that of the rounds before"
    ]
    assert (changed.best_round, best) == (3, 3)
    [note] = changed.notes
    assert note.startswith("Scored on another holdout than the one described here: rounds 1, 2. ")
    without, best = await scored(state, 0.0, None, 4)
    assert (without.best_round, best) == (3, 3)
    assert without.notes == (
        "The last start was given no holdout: scores are of rounds up to 3, on one that is not described here.",
    )


async def test_report_says_which_rounds_were_run_with_another_strategy_or_plan(tmp_path: Path) -> None:
    first: dict[str, Any] = {"strategy": "fedavg", "plan": {"learning_rate": 0.5, "early_stopping_patience": 2}}
    lives = ((first, (1, 2)), ({"strategy": "uniform"}, (3,)), ({"strategy": "uniform"}, (4,)))
    for settings, numbers in lives:
        async with Bench.running(tmp_path, "a", **settings) as bench:
            for number in numbers:
                await bench.play(number)
            record = federation_record(bench.federation, "all rounds done", None, None, [])
        if settings is first:
            assert record.notes == ()
    aggregated, trained = record.notes
    assert aggregated == "Aggregated with another strategy than the one described here: rounds 1, 2, with fedavg."
    plan = "early stopping patience 2, learning rate 0.5"
    assert trained == f"Trained by another plan than the one described here: rounds 1, 2, with {plan}."


async def test_best_model_on_a_holdout_that_comes_back_is_still_there(tmp_path: Path) -> None:
    first, other, state = holdout(tmp_path / "1", "a"), holdout(tmp_path / "2", "b", "c"), tmp_path / "state"
    lives = ((first, 0.9, 1), (other, 0.5, 2), (other, 0.6, 3), (other, 0.7, 4), (first, 0.8, 5), (other, 0.6, 6))
    for place, accuracy, number in lives:
        async with Bench.running(state, "a", accuracies=[accuracy], holdout=place, keep_rounds=1) as bench:
            await bench.play(number)
            kept = [version for version in range(number + 1) if bench.state.models.of_version(version).kept]
            assert bench.federation.best_model.version == (1 if place == first else min(number, 4))
    assert kept == [0, 1, 4, 5, 6]


async def test_best_model_that_an_earlier_version_has_collected_is_not_chosen(tmp_path: Path) -> None:
    place, settings = holdout(tmp_path / "1", "a"), {"keep_rounds": 1, "early_stopping_rounds": 3}
    async with Bench.running(tmp_path / "state", "a", accuracies=[0.9, 0.5, 0.7, 0.6], **settings) as bench:
        for number in range(1, 5):
            await bench.play(number)
        bench.state.collect(2, ())
    async with Bench.running(tmp_path / "state", "a", accuracies=[0.5], holdout=place, **settings) as bench:
        assert bench.federation.best_model.version == 3
        assert bench.federation.scoreboard.rounds_without_better == 1


def test_generated_holdout_is_another_with_other_settings_and_none_is_none() -> None:
    ids = {
        holdout_id(ServerConfig.model_validate({"holdout": "phantom", "task_settings": settings}))
        for settings in ({}, {"noise": "0.2"})
    }
    assert len(ids - {""}) == 2
    assert holdout_id(ServerConfig()) == ""


def test_holdout_of_links_to_class_folders_is_another_where_they_lead_elsewhere(tmp_path: Path) -> None:
    ids = []
    for number in ("1", "2"):
        data, linked = Path(holdout(tmp_path / number, f"no/{number}a", f"yes/{number}b")), tmp_path / f"linked{number}"
        linked.mkdir()
        for name in ("no", "yes"):
            (linked / name).symlink_to(data / name)
        (linked / "no" / "back").symlink_to(linked)  # which must not be followed for ever
        ids.append(holdout_id(ServerConfig(holdout=str(linked))))
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("recorded", "now", "compared"),
    [
        (["", ""], "x", [1, 2]),
        (["", ""], "", [1, 2]),
        (["", "x", "y"], "y", [3]),
        (["", "x", "y"], "x", [1, 2]),
        (["", "x", "y"], "", [3]),
        (["", "x"], "y", []),
        ([], "x", []),
    ],
)
def test_rounds_of_an_earlier_version_are_taken_for_scored_on_the_first_holdout_that_is_known(
    recorded: list[str], now: str, compared: list[int]
) -> None:
    records: Any = [
        SimpleNamespace(number=number, evaluation="scores", holdout_id=one)
        for number, one in enumerate(recorded, start=1)
    ]
    assert [record.number for record in comparable(records, now)] == compared
