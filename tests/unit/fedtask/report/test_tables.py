from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from fedtask.report import Contribution, FederationRecord, RoundRecord, tables
from fedtask.report.tables import ClientRow, Incident, Score, SiteRow
from fedtask.task import Evaluation, Interval

MakeRecord = Callable[..., FederationRecord]


def test_client_rows_hold_everybody_who_came_by_name(make_record: MakeRecord) -> None:
    assert tables.client_rows(make_record()) == [
        ClientRow("north", "idle", "", 3, 3, 100, 0.5, 3000, "fedclient 0.1.0"),
        ClientRow("other", "declined", "its model differs: head/kernel", 0, 0, 30, None, 0, "fedclient 0.1.0"),
        ClientRow("south", "", "", 3, 2, 75, 0.75, 2400, ""),
    ]


def test_site_rows_show_the_best_model_as_the_next_round_met_it(make_record: MakeRecord) -> None:
    assert tables.site_rows(make_record()) == [
        SiteRow("north", "completed", 25, 0.25, 3, received=0.5, trained=0.75, best=0.625),
        SiteRow("south", "completed", 75, 0.75, 3, received=0.75, trained=1.0, best=None),
    ]


def test_site_rows_without_a_best_round_are_empty(make_record: MakeRecord) -> None:
    assert tables.site_rows(make_record(best_round=None)) == []


def test_incidents_of_one_kind_are_one_row(make_record: MakeRecord) -> None:
    rounds = make_record().rounds
    again = RoundRecord(4, False, "1 update, 2 needed", 30.0, contributions=rounds[2].contributions)

    assert tables.incidents(make_record(rounds=(*rounds, again))) == [
        Incident("south", "expired", "no sign of life for 60 s", "rounds 3, 4")
    ]


def test_incidents_that_differ_in_the_number_of_their_round_alone_are_one_row(make_record: MakeRecord) -> None:
    rounds = tuple(
        RoundRecord(
            number,
            True,
            "",
            30.0,
            contributions=(
                Contribution("south", 1, "cancelled", f"round {number} closed: reporting goal of 10 reached"),
            ),
        )
        for number in (1, 10, 11)
    )

    assert tables.incidents(make_record(rounds=rounds, best_round=None)) == [
        Incident("south", "cancelled", "the round closed: reporting goal of 10 reached", "rounds 1, 10, 11")
    ]


def test_setbacks_say_why_rounds_failed_or_were_not_scored(make_record: MakeRecord) -> None:
    rounds = (
        RoundRecord(1, False, "1 update, 2 needed", 30.0),
        RoundRecord(2, False, "1 update, 2 needed", 30.0),
        RoundRecord(3, True, "", 30.0, evaluation_reason="the worker process ended with status -9."),
        RoundRecord(4, False, "", 30.0),
    )

    assert tables.setbacks(make_record(rounds=rounds, best_round=None)) == [
        "Rounds 1, 2 failed: 1 update, 2 needed.",
        "Round 3 not scored: the worker process ended with status -9.",
        "Round 4 failed: no reason was recorded.",
    ]


def test_score_rows_line_up_the_metrics_of_all_evaluations() -> None:
    first = Evaluation({"loss": 0.25, "accuracy": 0.5}, 4, intervals={"accuracy": Interval(0.25, 0.75)})
    second = Evaluation({"loss": 0.125, "auc": None}, 4, undefined={"auc": "there are no positive examples"})

    got = {row.title: row.scores for row in tables.score_rows([first, second])}

    assert got == {
        "Loss": (Score("0.2500", "", ""), Score("0.1250", "", "")),
        "Accuracy": (Score("50.0%", "25.0% to 75.0%", ""), Score("–", "", "not measured")),
        "AUC": (Score("–", "", "not measured"), Score("–", "", "there are no positive examples")),
    }


def test_mean_leaves_out_what_is_missing() -> None:
    assert tables.mean([0.5, None, math.nan, 1.0]) == 0.75
    assert tables.mean([None]) is None


@pytest.mark.parametrize(
    ("loss_name", "meaning"),
    [
        ("cross-entropy", "how far the predicted probabilities are from the truth (cross-entropy); 0 is perfect"),
        ("squared error", "squared error; the lower the better"),
        ("", "what training makes smaller; the lower the better"),
    ],
)
def test_score_rows_say_of_the_loss_what_is_known_of_it(loss_name: str, meaning: str) -> None:
    rows = tables.score_rows([Evaluation({"loss": 0.25, "mse": 0.5}, 4)], loss_name)

    assert [(row.title, row.meaning) for row in rows] == [("Loss", meaning), ("mse", "")]
