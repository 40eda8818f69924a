"""The head task without its backbone: what a site does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedstream.plan import Plan
from fedtask.brain_mri_head.settings import read_head_settings
from fedtask.brain_mri_head.task import BrainMriHead
from fedtask.brain_mri_head.training import epoch_order
from fedtask.task import Cancelled, EpochReport, SiteOptions, TaskError
from tests.support.brain_mri import differing, ignore
from tests.support.features import SETTINGS, write_site

pytestmark = pytest.mark.numpy_task


def opened(path: Path | None, **options: int) -> BrainMriHead:
    task = BrainMriHead(SETTINGS)
    task.open_site(SiteOptions(path, **options))
    return task


def test_defaults_are_those_of_the_whole_model() -> None:
    task = BrainMriHead({})
    assert task.default_plan() == Plan(10, 32, 1e-4, 2, 0)
    assert [spec.describe() for spec in task.schema()] == [
        "head/kernel float32 (1280, 1) trainable",
        "head/bias float32 (1,) trainable",
    ]
    assert task.meaning().preprocessing == (
        "rgb 224x224 bilinear; x / 127.5 - 1; MobileNetV2 alpha 1 of imagenet; mean over positions"
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classes": "no"}, "two different names"),
        ({"positive_class": "maybe"}, "one of no, yes"),
        ({"backbone": "resnet"}, "imagenet, random, none or sha256:HEX"),
        ({"backbone": "none"}, "features is the numbers per example"),
        ({"features": "3"}, "left out otherwise"),
        ({"backbone_file": "w.h5"}, "needs backbone=sha256:HEX"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_head_settings(settings)


def test_site_trains_on_as_many_examples_as_it_allows_and_always_the_same(tmp_path: Path) -> None:
    path = write_site(tmp_path, seed=1)
    task, again = opened(path, max_examples=7), opened(path, max_examples=7)
    base = task.initial_weights(0, None)
    tuned = task.fine_tune(base, task.default_plan(), ignore)
    assert tuned.num_examples == 7
    assert differing(tuned.weights, again.fine_tune(base, task.default_plan(), ignore).weights) == []


def test_site_is_told_where_folders_of_other_names_are_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="give --classes to `fedclient features`"):
        BrainMriHead(SETTINGS).open_site(SiteOptions(write_site(tmp_path, seed=1), classes={"no": "healthy"}))


def test_fine_tune_on_a_features_file_learns_and_repeats_to_the_bit(tmp_path: Path) -> None:
    path = write_site(tmp_path, seed=1)
    task, again = opened(path), opened(path)
    task.open_holdout(write_site(tmp_path, seed=2), {})
    base, plan = task.initial_weights(0, None), replace(task.default_plan(), seed=2**64 - 1)
    tuned = task.fine_tune(base, plan, ignore)
    assert task.evaluate(tuned.weights).metrics["accuracy"] > 0.95
    assert tuned.num_examples == 60
    assert [sorted(row) for row in tuned.history] == [["accuracy", "loss", "val_accuracy", "val_loss"]] * 4
    assert {"base_loss", "base_accuracy"} <= set(tuned.metrics)
    assert differing(tuned.weights, again.fine_tune(base, plan, ignore).weights) == []
    other = again.fine_tune(base, replace(plan, seed=1), ignore)
    assert differing(tuned.weights, other.weights) == ["head/kernel", "head/bias"]


def test_fine_tune_with_patience_ends_in_the_best_epoch(tmp_path: Path) -> None:
    task = opened(write_site(tmp_path, seed=1, num_train=20, distance=0.2))
    plan = Plan(epochs=400, batch_size=4, learning_rate=0.02, early_stopping_patience=3, seed=0)
    tuned = task.fine_tune(task.initial_weights(0, None), plan, ignore)
    losses = [row["val_loss"] for row in tuned.history]
    assert len(losses) < 400
    assert tuned.metrics["val_loss"] == min(losses) == losses[-4]


def test_first_step_of_adam_is_the_learning_rate_in_the_gradients_direction(tmp_path: Path) -> None:
    # With a tiny epsilon, m / sqrt(v) of the first step is the gradient's sign.
    task = BrainMriHead(SETTINGS | {"adam_epsilon": "1e-10"})
    task.open_site(SiteOptions(write_site(tmp_path, seed=1)))
    base = {"head/kernel": np.zeros((6, 1), np.float32), "head/bias": np.zeros(1, np.float32)}
    tuned = task.fine_tune(base, Plan(1, 1000, 0.125, 0, 0), ignore)
    assert np.abs(tuned.weights["head/kernel"]) == pytest.approx(0.125, rel=1e-6)
    assert (tuned.weights["head/kernel"] > 0).all()  # label 1 lies on the positive side


def test_epoch_order_is_the_documented_one() -> None:
    # What `printf '7 1 0' | sha256sum` and so on say, sorted.
    assert epoch_order(seed=7, epoch=1, num=5).tolist() == [0, 1, 4, 3, 2]


def test_fine_tune_is_cancelled_by_its_report(tmp_path: Path) -> None:
    def stop(_report: EpochReport) -> None:
        raise Cancelled

    task = opened(write_site(tmp_path, seed=1))
    with pytest.raises(Cancelled):
        task.fine_tune(task.initial_weights(0, None), task.default_plan(), stop)


def test_shards_of_one_file_share_no_example_and_have_validation_of_their_own(tmp_path: Path) -> None:
    path = write_site(tmp_path, seed=1)
    task = BrainMriHead(SETTINGS)
    counts = [task.open_site(SiteOptions(path, shard=shard, num_shards=2)).counts for shard in (0, 1)]
    assert counts == [{"train": {"no": 13, "yes": 13}, "val": {"no": 2, "yes": 2}}] * 2


def test_generated_examples_differ_between_site_and_holdout() -> None:
    task = opened(None)
    summary = task.open_holdout(None, {})
    assert (summary.synthetic, summary.counts) == (True, {"holdout": {"no": 100, "yes": 100}})
    tuned = task.fine_tune(task.initial_weights(0, None), task.default_plan(), ignore)
    assert task.evaluate(tuned.weights).metrics["accuracy"] > 0.9


def test_features_of_another_federation_are_refused_with_both_meanings(tmp_path: Path) -> None:
    task = BrainMriHead(SETTINGS | {"classes": "yes,no"})
    with pytest.raises(TaskError, match=r"it means no,yes \| yes \| 6 numbers as they are, and this one yes,no"):
        task.open_site(SiteOptions(write_site(tmp_path, seed=1)))


def test_exported_head_reads_back(tmp_path: Path) -> None:
    task = opened(None)
    weights = task.initial_weights(3, None)
    (path,) = task.export(weights, tmp_path, "head")
    assert differing(weights, task.read_model(path)) == []
    assert np.abs(weights["head/kernel"]).max() <= np.sqrt(6 / 7)
