"""The tiny numpy task. The whole file takes about a second."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedstream.plan import Plan
from fedtask.linear import Linear
from fedtask.task import Cancelled, EpochReport, SiteOptions, TaskError

pytestmark = pytest.mark.numpy_task


def ignore(_report: EpochReport) -> None:
    """A report nobody reads."""


def opened(settings=None, **options) -> Linear:
    task = Linear(settings or {})
    task.open_site(SiteOptions(folder=None, **options))
    return task


def digest(weights) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(values).tobytes() for values in weights.values())).hexdigest()


def test_fine_tune_with_a_limit_uses_so_many_examples_the_same_ones_each_time():
    base = opened().initial_weights(0, None)
    tuned = [
        task.fine_tune(base, task.default_plan(), ignore) for task in (opened(max_examples=50), opened(max_examples=50))
    ]
    assert [one.num_examples for one in tuned] == [50, 50]
    assert digest(tuned[0].weights) == digest(tuned[1].weights)


def test_fine_tune_of_the_default_on_generated_data_learns():
    task = opened()
    task.open_holdout(None, {})
    base = task.initial_weights(0, None)
    tuned = task.fine_tune(base, task.default_plan(), ignore)
    assert task.evaluate(base).metrics["accuracy"] < 0.6
    assert task.evaluate(tuned.weights).metrics["accuracy"] > 0.9
    losses = [row["loss"] for row in tuned.history]
    assert 0.7 > losses[0] > losses[1] > losses[2] > 0
    assert tuned.num_examples == 170
    assert [sorted(row) for row in tuned.history] == [["accuracy", "loss", "val_accuracy", "val_loss"]] * 3
    assert {"base_loss", "base_accuracy"} <= set(tuned.metrics)


def test_fine_tune_twice_from_the_same_base_and_plan_gives_the_same_bits():
    settings = {"tensors": "2", "tensor_kib": "1"}
    task, again = opened(settings, shard=1, num_shards=3), opened(settings, shard=1, num_shards=3)
    base, plan = task.initial_weights(0, None), replace(task.default_plan(), seed=7)
    first, second = task.fine_tune(base, plan, ignore), again.fine_tune(base, plan, ignore)
    other = again.fine_tune(base, replace(plan, seed=8), ignore)
    assert digest(first.weights) == digest(second.weights) != digest(other.weights)
    assert first.history == second.history


def test_generated_sites_of_one_seed_have_different_examples():
    one, two = opened(shard=0, num_shards=2), opened(shard=1, num_shards=2)
    plan, base = one.default_plan(), one.initial_weights(0, None)
    assert digest(one.fine_tune(base, plan, ignore).weights) != digest(two.fine_tune(base, plan, ignore).weights)


def test_schema_with_further_tensors_lists_them_and_only_the_trainable_ones_move():
    task = opened({"tensors": "2", "frozen_tensors": "1", "tensor_kib": "4"})
    assert [spec.describe() for spec in task.schema()] == [
        "weights float32 (10,) trainable",
        "bias float32 () trainable",
        "further_00000 float32 (1024,) trainable",
        "further_00001 float32 (1024,) trainable",
        "frozen_00000 float32 (1024,) frozen",
    ]
    base = task.initial_weights(3, None)
    trained = task.fine_tune(base, task.default_plan(), ignore).weights
    assert [name for name in base if base[name].tobytes() == trained[name].tobytes()] == ["frozen_00000"]
    assert base["further_00000"].tobytes() != base["further_00001"].tobytes()


def test_fine_tune_reports_how_far_it_is_after_every_epoch():
    task, reports = opened(), []
    tuned = task.fine_tune(task.initial_weights(0, None), replace(task.default_plan(), epochs=4), reports.append)
    assert reports == [
        EpochReport("training", epoch, 4, epoch / 4, metrics) for epoch, metrics in enumerate(tuned.history, 1)
    ]


def test_fine_tune_that_takes_seconds_ends_promptly_when_cancelled():
    task = opened({"seconds": "30"})
    reports: list[EpochReport] = []

    def cancel_at_the_third(report: EpochReport) -> None:
        reports.append(report)
        if len(reports) == 3:
            raise Cancelled

    started = time.monotonic()
    with pytest.raises(Cancelled):
        task.fine_tune(task.initial_weights(0, None), task.default_plan(), cancel_at_the_third)
    assert time.monotonic() - started < 30  # of the 90 that three epochs take
    assert [report.phase for report in reports] == ["training"] * 3


def test_early_stopping_returns_the_best_epoch_and_its_metrics():
    task = opened({"noise": "0.3", "features": "100", "examples": "60"})
    plan = Plan(epochs=50, batch_size=8, learning_rate=1.0, early_stopping_patience=2, seed=0)
    tuned = task.fine_tune(task.initial_weights(0, None), plan, ignore)
    losses = [row["val_loss"] for row in tuned.history]
    assert len(losses) < 50
    assert tuned.metrics["val_loss"] == min(losses) == losses[-3]


def test_folder_with_npz_files_is_read_and_a_wrong_one_is_explained(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 10))
    np.savez(tmp_path / "train.npz", x=x, y=x[:, 0] > 0)
    summary = Linear({}).open_site(SiteOptions(folder=tmp_path))
    assert (summary.num_examples, summary.synthetic) == (34, False)
    with pytest.raises(TaskError, match=r"holdout\.npz"):
        Linear({}).open_holdout(tmp_path, {})
    with pytest.raises(TaskError, match=r"x \[40, 10\].*wanted x \[n, 3\]"):
        Linear({"features": "3"}).open_site(SiteOptions(folder=tmp_path))
    np.savez(tmp_path / "train.npz", x=x, y=np.arange(40) % 3)
    with pytest.raises(TaskError, match="labels other than 0 and 1"):
        Linear({}).open_site(SiteOptions(folder=tmp_path))
    np.savez(tmp_path / "train.npz", x=x[:0], y=x[:0, 0])
    with pytest.raises(TaskError, match=r"x \[0, 10\]"):
        Linear({}).open_site(SiteOptions(folder=tmp_path))


def test_exported_model_read_again_is_the_same_and_another_model_is_refused(tmp_path):
    task = opened()
    weights = task.fine_tune(task.initial_weights(0, None), task.default_plan(), ignore).weights
    [path] = task.export(weights, tmp_path, "GLOBAL_MODEL")
    assert path == tmp_path / "GLOBAL_MODEL.safetensors"
    assert digest(task.read_model(path)) == digest(weights)
    assert digest(task.initial_weights(0, str(path))) == digest(weights)
    save_file({"weights": np.zeros(3, np.float32), "extra": np.zeros(1, np.float32)}, path)
    with pytest.raises(TaskError) as error:
        task.read_model(path)
    assert str(error.value) == (
        f"{path} holds another model: weights is float32 [3] there and float32 [10] here; "
        "bias float32 [] is missing; extra [1] is not in this model"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": "3"}, "unknown setting 'depth'; known are features, examples"),
        ({"features": "0"}, r"features \(numbers per example\) is 1 to 100000, not '0'"),
        ({"noise": "nan"}, "noise .* is 0 to 0.5, not 'nan'"),
        ({"examples": "many"}, "examples .* not 'many'"),
        ({"classes": "no"}, "two names"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        Linear(settings)
