from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstream.plan import Plan
from fedtask.report import (
    OUTCOMES,
    Contribution,
    DataDescription,
    FederationRecord,
    PlanRecord,
    RoundRecord,
    record_from_json,
    record_to_json,
)

MakeRecord = Callable[..., FederationRecord]


def test_record_through_json_text_comes_back_equal(make_record: MakeRecord) -> None:
    record = make_record(test_evaluation=make_record().rounds[0].evaluation, early_stop_reason="no better for 3 rounds")

    text = json.dumps(record_to_json(record), allow_nan=False)

    assert record_from_json(json.loads(text)) == record


def test_record_with_a_metric_that_is_not_finite_is_written_with_null(make_record: MakeRecord) -> None:
    odd = replace(make_record().rounds[0].contributions[0], metrics={"loss": math.nan, "accuracy": 0.5})
    record = make_record(rounds=(RoundRecord(1, True, "", 1.0, contributions=(odd,)),), best_round=None)

    document = record_to_json(record)

    assert document["rounds"][0]["contributions"][0]["metrics"] == {"loss": None, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.pop("strategy"), "strategy\n  Field required"),
        (lambda document: document.update(colour="red"), "colour\n  Unexpected keyword argument"),
        (
            lambda document: document["rounds"][0].update(number="two"),
            r"rounds.0.number\n  Input should be a valid int",
        ),
        (lambda document: document.update(best_round=9), "round 9 cannot be the best one"),
        (lambda document: document["rounds"][0]["contributions"][0].update(outcome="lost"), "'lost' is no outcome"),
    ],
)
def test_record_from_json_of_a_wrong_document_names_the_field(
    make_record: MakeRecord, change: Callable[[dict[str, object]], object], message: str
) -> None:
    document = record_to_json(make_record())
    change(document)

    with pytest.raises(ValueError, match=message):
        record_from_json(document)


@given(st.lists(st.sampled_from(OUTCOMES)))
def test_counts_of_a_round_always_add_up_to_the_offers(outcomes: list[str]) -> None:
    offers = tuple(Contribution(f"client {i}", i, outcome) for i, outcome in enumerate(outcomes))

    got = RoundRecord(1, True, "", 1.0, contributions=offers)

    assert sum(got.counts.values()) == got.offered == len(outcomes)
    assert tuple(got.counts) == OUTCOMES


def test_derived_facts_of_a_record_follow_from_its_rounds(make_record: MakeRecord) -> None:
    record = make_record()

    assert record.best == record.rounds[1]
    assert record.last_round == 3
    assert (record.bytes_received, record.bytes_sent) == (2000 + 2000 + 1400, 15000)
    assert record.rounds[2].counts == dict.fromkeys(OUTCOMES, 0) | {"completed": 1, "expired": 1}


@pytest.mark.parametrize(
    ("generated", "expected"),
    [((), False), (("training",), True), (("holdout",), True), (("test",), True)],
    ids=["none", "training data", "holdout", "test set"],
)
def test_record_counts_as_synthetic_if_any_of_its_data_is(
    make_record: MakeRecord, generated: tuple[str, ...], expected: bool
) -> None:
    record = make_record(
        training_data_synthetic="training" in generated,
        holdout=DataDescription({"no": 1}, synthetic="holdout" in generated),
        test=DataDescription({"no": 1}, synthetic="test" in generated),
    )

    assert record.synthetic == expected


def test_accuracy_of_a_contribution_prefers_validation_and_may_be_missing() -> None:
    both = Contribution("a", 0, "completed", metrics={"accuracy": 0.5, "val_accuracy": 0.75})
    plain = Contribution("a", 0, "completed", metrics={"accuracy": 0.5})

    assert (both.accuracy, plain.accuracy, Contribution("a", 0, "failed").accuracy) == (0.75, 0.5, None)


def test_plan_record_holds_every_field_of_a_plan() -> None:
    plan = Plan(epochs=4, batch_size=8, learning_rate=0.5, early_stopping_patience=2, seed=9, settings={"a": "b"})

    assert PlanRecord.of(plan) == PlanRecord(4, 8, 0.5, 2, 9, {"a": "b"})
    assert PlanRecord.__slots__ == Plan.__slots__


def test_importing_the_report_loads_no_plotting_library() -> None:
    code = "import sys, fedtask.report; print([m for m in ('matplotlib', 'jinja2', 'tensorflow') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("sent", [-1e308, 1.7e308, -0.001, 1.001, math.nan, None])
def test_share_of_a_contribution_that_is_none_counts_as_not_given(sent: float | None) -> None:
    got = Contribution("a", 0, "completed", metrics={"val_accuracy": sent, "base_accuracy": sent})

    assert (got.accuracy, got.base_accuracy) == (None, None)


def test_shares_of_a_contribution_include_both_ends() -> None:
    got = Contribution("a", 0, "completed", metrics={"val_accuracy": 1.0, "base_accuracy": 0.0})

    assert (got.accuracy, got.base_accuracy) == (1.0, 0.0)
