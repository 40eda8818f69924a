"""The worked example of docs/own_task.md, and what Keras tasks share. Takes about 15 seconds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from fedstream.plan import Plan
from fedstream.schema import TensorRole
from fedtask.keras_task import KerasTask
from fedtask.registry import create_task
from fedtask.task import SiteOptions, TaskError
from tests.support.brain_mri import differing, ignore

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "own_task.md"


@pytest.fixture
def spots(tmp_path, monkeypatch):
    """The task that the document shows, as its reader would make it."""
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_task.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return create_task("my_task:Spots", {"learning_rate": "0.05", "epochs": "8"})


def test_example_of_the_document_learns_in_a_federation_of_two(spots, tmp_path):
    weights = spots.initial_weights(0, None)
    spots.open_holdout(None, {})
    before = spots.evaluate(weights).metrics["accuracy"]
    updates = []
    for shard in range(2):
        summary = spots.open_site(SiteOptions(None, shard=shard, num_shards=2))
        assert summary.synthetic
        updates.append(spots.fine_tune(weights, spots.default_plan(), ignore))
    averaged = {name: np.mean([update.weights[name] for update in updates], axis=0) for name in weights}
    assert before < 0.8
    assert spots.evaluate(averaged).metrics["accuracy"] > 0.9
    keras_file, h5_file = spots.export(averaged, tmp_path, "GLOBAL_MODEL")
    assert differing(averaged, spots.read_model(keras_file)) == []
    assert differing(averaged, spots.read_model(h5_file)) == []
    assert differing(averaged, spots.initial_weights(0, str(h5_file))) == []


def test_example_of_the_document_with_a_limit_trains_on_so_many(spots):
    summary = spots.open_site(SiteOptions(None, max_examples=40))
    tuned = spots.fine_tune(spots.initial_weights(0, None), spots.default_plan(), ignore)
    assert (summary.num_examples, sum(summary.counts["train"].values()), tuned.num_examples) == (40, 40, 40)


def test_example_of_the_document_has_the_same_schema_however_often_it_is_made(spots):
    names = [spec.name for spec in spots.schema()]
    assert names == [f"sequential/{name}" for name in ("conv2d/kernel", "conv2d/bias", "dense/kernel", "dense/bias")]
    again = type(spots)({})
    assert again.schema().digest() == spots.schema().digest()
    assert again.schema().digest() == type(spots)({}).schema().digest()


def test_example_of_the_document_reads_folders_and_says_what_it_misses(spots, tmp_path):
    x, y = spots.generate("train")
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "pictures.npz", x=x[:40], y=y[:40])
    summary = spots.open_site(SiteOptions(tmp_path))
    assert summary.num_examples == 40
    assert summary.counts["val"] == summary.counts["train"]
    with pytest.raises(TaskError, match=r"looked for .*pictures\.npz"):
        spots.open_holdout(tmp_path, {})


def test_fine_tune_is_repeatable_with_dropout_and_fresh_optimiser_state():
    task = Three({})
    task.open_site(SiteOptions(None))
    base, plan = task.initial_weights(0, None), task.default_plan()
    first = task.fine_tune(base, plan, ignore)
    again = task.fine_tune(base, plan, ignore)
    fresh = Three({})
    fresh.open_site(SiteOptions(None))
    assert differing(first.weights, again.weights) == []
    assert differing(first.weights, fresh.fine_tune(base, plan, ignore).weights) == []
    assert differing(first.weights, task.fine_tune(base, replace(plan, seed=1), ignore).weights) != []


def test_frozen_layer_and_batch_norm_have_their_marks_and_their_ways():
    task = Three({})
    schema = {spec.name: (spec.trainable, spec.role) for spec in task.schema()}
    assert schema["frozen/kernel"] == (False, TensorRole.WEIGHT)
    assert schema["norm/gamma"] == (True, TensorRole.WEIGHT)
    assert schema["norm/moving_mean"] == (True, TensorRole.STATISTIC)
    task.open_site(SiteOptions(None))
    base = task.initial_weights(0, None)
    changed = differing(base, task.fine_tune(base, Plan(1, 16, 0.01, 0, 0), ignore).weights)
    assert changed == [name for name, (trainable, _) in schema.items() if trainable]


def test_three_classes_are_scored_by_loss_accuracy_and_confusion():
    task = Three({})
    task.open_site(SiteOptions(None))
    task.open_holdout(None, {})
    plan = Plan(epochs=30, batch_size=16, learning_rate=0.02, early_stopping_patience=5, seed=0)
    scored = task.evaluate(task.fine_tune(task.initial_weights(0, None), plan, ignore).weights)
    assert scored.metrics["accuracy"] > 0.8
    assert sorted(scored.metrics) == ["accuracy", "loss"]
    assert np.array(scored.confusion).sum() == scored.num_examples == 90
    assert np.trace(np.array(scored.confusion)) / 90 == pytest.approx(scored.metrics["accuracy"])
    diverged = {name: np.full_like(values, np.nan) for name, values in task.initial_weights(0, None).items()}
    with pytest.raises(TaskError, match="outputs for 90 of 90 examples are NaN or infinite"):
        task.evaluate(diverged)


def test_model_with_the_wrong_number_of_outputs_is_refused():
    class Wrong(Three):
        class_names = ("a", "b", "c", "d")

    with pytest.raises(TaskError, match="the model has 3 outputs for 4 classes"):
        Wrong({}).schema()


def test_model_whose_last_layer_gives_no_probabilities_is_refused_when_it_is_scored():
    class Linear(Three):
        def build_model(self):
            inputs = keras.Input((4,))
            return keras.Model(inputs, keras.layers.Dense(3, name="out")(inputs))

    task = Linear({})
    task.open_holdout(None, {})
    with pytest.raises(TaskError, match="outputs are no probabilities: let its last layer end in a sigmoid"):
        task.evaluate(task.initial_weights(0, None))


def test_examples_of_another_shape_than_the_models_inputs_are_told_with_both():
    class Wide(Three):
        def generate(self, purpose):
            x, y = super().generate(purpose)
            return x[:, :3], y

    task = Wide({})
    task.open_site(SiteOptions(None))
    with pytest.raises(TaskError, match=r"the model takes inputs \[n, 4\]; load gave \[n, 3\]"):
        task.fine_tune(task.initial_weights(0, None), Plan(1, 16, 0.01, 0, 0), ignore)


def test_model_that_is_not_known_before_it_is_called_is_refused():
    class Written(keras.Model):
        def call(self, inputs):
            return inputs

    class Unknown(Three):
        def build_model(self):
            return Written()

    with pytest.raises(TaskError, match="whose inputs and outputs are not known before it is called"):
        Unknown({}).schema()


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.array([0, 1, 7]), "a label is none of 0 to 2"), (np.array([0, 1]), r"inputs \[3, 4\] and labels \[2\]")],
)
def test_arrays_that_do_not_fit_are_refused(labels, message):
    class Loaded(Three):
        def generate(self, purpose):
            return np.zeros((3, 4)), labels

    with pytest.raises(TaskError, match=message):
        Loaded({}).open_site(SiteOptions(None))


def test_inputs_with_gaps_are_told_before_they_spoil_every_weight():
    class Gaps(Three):
        def generate(self, purpose):
            inputs = np.zeros((40, 4), np.float32)
            inputs[[0, 7], 1] = np.nan
            inputs[7, 2] = np.inf
            return inputs, np.arange(40) % 3

    class Few(Three):
        def generate(self, purpose):
            return np.zeros((3, 4)), np.arange(3)

    told = "of 40 examples hold NaN or infinity, as where a value is missing; unless the model"
    [of_holdout] = Gaps({}).open_holdout(None, {}).warnings
    assert of_holdout.startswith(f"holdout: 2 {told}")
    of_site = Gaps({}).open_site(SiteOptions(None)).warnings
    assert sum(int(warning.split()[1]) for warning in of_site) == 2
    few = Few({}).open_site(SiteOptions(None))
    assert (sum(few.counts["val"].values()), list(few.warnings)) == (0, [])


class Three(KerasTask):
    """Three classes, by the largest of three numbers; a frozen layer, BatchNorm and dropout on the way."""

    class_names = ("a", "b", "c")

    def build_model(self):
        inputs = keras.Input((4,))
        x = keras.layers.Dense(16, "relu", name="frozen", trainable=False)(inputs)
        x = keras.layers.BatchNormalization(momentum=0.9, name="norm")(x)
        x = keras.layers.Dropout(0.1)(x)
        return keras.Model(inputs, keras.layers.Dense(3, "softmax", name="out")(x))

    def generate(self, purpose):
        rng = np.random.default_rng({"train": 1, "holdout": 2}[purpose])
        x = rng.normal(size=(240 if purpose == "train" else 90, 4)).astype("float32")
        return x, x[:, :3].argmax(axis=1)
