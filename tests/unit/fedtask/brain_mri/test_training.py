"""Fine-tuning and scoring a small network on a small phantom. Takes about 40 seconds on one core."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from fedstream.schema import TensorRole
from fedtask.brain_mri.phantom import write_phantom
from fedtask.brain_mri.task import BrainMri
from fedtask.task import Cancelled, EpochReport, SiteOptions, TaskError
from tests.support.brain_mri import SMALL, differing, ignore


@pytest.fixture(scope="module")
def plan(upper_task):
    return replace(upper_task.default_plan(), epochs=2, batch_size=8, learning_rate=1e-3, seed=5)


@pytest.fixture(scope="module")
def base(upper_task):
    return upper_task.initial_weights(0, "random")


def small_task(folder, **settings: str) -> BrainMri:
    task = BrainMri({**SMALL, **settings})
    task.open_site(SiteOptions(folder))
    return task


def test_fine_tune_changes_what_is_trainable_and_hands_the_rest_back_byte_for_byte(upper_task, base, plan):
    tuned = upper_task.fine_tune(base, plan, ignore)
    assert differing(base, tuned.weights) == [spec.name for spec in upper_task.schema() if spec.trainable]
    assert list(tuned.weights) == [spec.name for spec in upper_task.schema()]
    assert tuned.num_examples == 40
    assert [sorted(row) for row in tuned.history] == [["accuracy", "loss", "val_accuracy", "val_loss"]] * 2
    expected = {"loss", "accuracy", "val_loss", "val_accuracy", "base_loss", "base_accuracy", "images_per_second"}
    assert set(tuned.metrics) == expected


def test_fine_tune_again_and_in_a_fresh_task_gives_the_same_bits(upper_task, base, plan, phantom):
    first = upper_task.fine_tune(base, plan, ignore)
    again = upper_task.fine_tune(base, plan, ignore)
    fresh = small_task(phantom).fine_tune(base, plan, ignore)  # computes its features anew, in memory
    other = upper_task.fine_tune(base, replace(plan, seed=6), ignore)
    assert differing(first.weights, again.weights) == []
    assert differing(first.weights, fresh.weights) == []
    assert first.history == again.history == fresh.history
    assert "head/kernel" in differing(first.weights, other.weights)


@pytest.mark.slow
def test_whole_network_trained_twice_gives_the_same_bits_and_moves_the_statistics(upper_task, phantom, base, plan):
    settings, short = {"fine_tune": "all", "batch_norm": "train"}, replace(plan, epochs=1)
    one, two = (small_task(phantom, **settings).fine_tune(base, short, ignore).weights for _ in range(2))
    assert differing(one, two) == []
    changed = set(differing(base, one))
    statistics = {spec.name for spec in upper_task.schema() if spec.role is TensorRole.STATISTIC}
    assert len(statistics) == 104
    assert statistics <= changed


def test_frozen_batch_norm_keeps_scale_and_statistics_while_all_else_is_trained(phantom, base, plan):
    task = small_task(phantom, fine_tune="all", batch_norm="frozen")
    changed = differing(base, task.fine_tune(base, replace(plan, epochs=1), ignore).weights)
    assert changed
    assert not [name for name in changed if name.rsplit("/", 1)[1] not in {"kernel", "bias"}]


def test_early_stopping_ends_in_the_best_epoch(upper_task, base, plan):
    eager = replace(plan, epochs=30, learning_rate=0.02, early_stopping_patience=2)
    tuned = upper_task.fine_tune(base, eager, ignore)
    losses = [row["val_loss"] for row in tuned.history]
    assert len(losses) < 30
    assert losses.index(min(losses)) == len(losses) - 3
    assert tuned.metrics["val_loss"] == min(losses)
    exact = replace(eager, epochs=len(losses) - 2, early_stopping_patience=0)
    assert differing(tuned.weights, upper_task.fine_tune(base, exact, ignore).weights) == []


def test_reports_tell_of_preparation_then_of_epochs_and_never_go_back(phantom, base, plan):
    reports: list[EpochReport] = []
    task = small_task(phantom)
    task.fine_tune(base, plan, reports.append)
    phases = [report.phase for report in reports]
    assert phases == sorted(phases)  # "preparing" comes before "training" in the alphabet, too
    assert {"preparing", "training"} == set(phases)
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    ends = [report for report in reports if report.metrics]
    assert [(report.epoch, report.epochs) for report in ends] == [(1, 2), (2, 2)]
    reports.clear()
    task.fine_tune(base, plan, reports.append)
    assert {report.phase for report in reports} == {"training"}


def test_cancelled_passes_through_promptly(phantom, base, plan):
    task = small_task(phantom)
    for phase in ("preparing", "training"):  # in this order: what was prepared once is there the next time

        def cancel(report: EpochReport, phase: str = phase) -> None:
            if report.phase == phase:
                raise Cancelled

        started = time.monotonic()
        with pytest.raises(Cancelled):
            task.fine_tune(base, replace(plan, epochs=10_000), cancel)
        assert time.monotonic() - started < 30
    assert task.fine_tune(base, plan, ignore).history  # the task can go on


def test_site_with_one_class_and_fewer_images_than_a_batch_trains(tmp_path, base, plan):
    folder = write_phantom(tmp_path / "phantom", num_train=4, num_val=2, size=64)
    for path in (folder / "train" / "no").iterdir():
        path.unlink()
    options = SiteOptions(folder, shard=0, num_shards=2)  # one image, so that no validation can be split off
    task = BrainMri({**SMALL, "class_weights": "balanced"})
    assert task.open_site(options).num_examples == 1
    tuned = task.fine_tune(base, replace(plan, batch_size=32, early_stopping_patience=2), ignore)
    assert tuned.num_examples == 1
    undefined = [name for name, value in tuned.metrics.items() if value is None]
    assert sorted(undefined) == ["base_accuracy", "base_loss", "val_accuracy", "val_loss"]
    assert len(tuned.history) == 2
    assert all(np.isfinite(values).all() for values in tuned.weights.values())


def test_evaluate_scores_the_weights_it_is_given(upper_task, base, plan):
    before = upper_task.evaluate(base)
    assert before.num_examples == 12
    tuned = upper_task.fine_tune(base, plan, ignore).weights
    assert upper_task.evaluate(tuned).metrics != before.metrics
    assert upper_task.evaluate(base) == before


def test_evaluate_takes_sub_folders_of_one_name_for_a_patient(phantom, base, tmp_path):
    for place, path in enumerate(sorted((phantom / "val").glob("*/*.png"))):
        there = tmp_path / path.parent.name / f"p{place % 5}"
        there.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, there)
    task = BrainMri(SMALL)
    task.open_holdout(tmp_path, {})
    scored = task.evaluate(base)
    assert (scored.num_examples, scored.num_groups) == (12, 5)
    wide, narrow = scored.grouped_intervals["accuracy"], scored.intervals["accuracy"]
    assert wide.high - wide.low > narrow.high - narrow.low


def test_evaluate_of_images_without_sub_folders_knows_of_no_patients(upper_task, base):
    scored = upper_task.evaluate(base)
    assert (scored.num_groups, scored.grouped_intervals) == (0, {})


def test_evaluate_with_the_first_class_positive_turns_the_scores_round(phantom, base):
    task = BrainMri({**SMALL, "positive_class": "no"})
    usual = BrainMri(SMALL)
    for each in (task, usual):
        each.open_holdout(phantom / "val", {})
    turned, plain = task.evaluate(base), usual.evaluate(base)
    assert turned.metrics["auc"] == plain.metrics["auc"]
    assert turned.metrics["sensitivity"] == plain.metrics["specificity"]
    assert turned.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=1e-6)


def test_site_without_a_folder_trains_on_the_phantom_and_says_so(tmp_path):
    task = BrainMri(SMALL)
    summary = task.open_site(SiteOptions(None, shard=0, num_shards=2, cache_folder=tmp_path))
    assert summary.synthetic
    assert sum(summary.counts["train"].values()) + sum(summary.counts["val"].values()) == 16
    assert "generated phantom" in summary.weaknesses[0]


def test_calls_in_the_wrong_order_say_what_comes_first(base, plan):
    task = BrainMri(SMALL)
    with pytest.raises(TaskError, match="open_site comes before fine_tune"):
        task.fine_tune(base, plan, ignore)
    with pytest.raises(TaskError, match="open_holdout comes before evaluate"):
        task.evaluate(base)
