"""What the report is told of a federation that is over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedserver.records import federation_record
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
