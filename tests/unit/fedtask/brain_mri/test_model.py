"""The network, its schema and its weights of round 0. Takes about 20 seconds, mostly for two fresh processes."""

from __future__ import annotations

import subprocess
import sys
import time

import keras
import pytest

from fedstream.schema import TensorRole
from fedtask.brain_mri.model import build_network, class_names_of, model_name
from fedtask.brain_mri.settings import read_brain_mri_settings
from fedtask.brain_mri.task import BrainMri
from fedtask.task import TaskError
from tests.support.brain_mri import SMALL, differing, shared_folder


@pytest.fixture(scope="module")
def task():
    """Of one network, since building it is most of what asking it for weights takes."""
    return BrainMri(SMALL)


@pytest.fixture(scope="module")
def backbone():
    return keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.35, include_top=False, weights=None)


def schema_with(**settings: str):
    return build_network(read_brain_mri_settings({**SMALL, **settings})).schema


@pytest.mark.slow
def test_schema_in_a_fresh_process_and_in_this_one_is_the_same():
    code = f"from fedtask.brain_mri.task import BrainMri as B; B({SMALL}); print(B({SMALL}).schema().digest().hex())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    schema_with()  # names must not count up with the number of networks built
    assert fresh == schema_with().digest().hex()


def test_schema_of_upper_starts_to_train_behind_block_12_and_leaves_batch_norm_alone(task):
    schema = task.schema()
    trainable = [spec.name for spec in schema if spec.trainable]
    assert len(schema) == 262
    assert trainable[:2] == ["block_13_expand/kernel", "block_13_depthwise/kernel"]
    assert trainable[-3:] == ["Conv_1/kernel", "head/kernel", "head/bias"]
    assert not any("BN" in name or "bn" in name for name in trainable)
    assert sum(spec.role is TensorRole.STATISTIC for spec in schema) == 104


@pytest.mark.parametrize(
    ("fine_tune", "batch_norm", "num_trainable"),
    [("head", "train", 2), ("upper", "train", 67), ("all", "frozen", 54), ("all", "train", 262)],
)
def test_schema_with_more_to_train_marks_exactly_that(fine_tune, batch_norm, num_trainable):
    schema = schema_with(fine_tune=fine_tune, batch_norm=batch_norm)
    assert sum(spec.trainable for spec in schema) == num_trainable
    statistics = [spec for spec in schema if spec.role is TensorRole.STATISTIC]
    assert {spec.name.rsplit("/", 1)[1] for spec in statistics} == {"moving_mean", "moving_variance"}


def test_random_weights_follow_the_seed(task):
    one, again, other = (task.initial_weights(seed, "random") for seed in (1, 1, 2))
    assert differing(one, again) == []
    assert {"Conv1/kernel", "head/kernel"} <= set(differing(one, other))
    assert list(one) == [spec.name for spec in task.schema()]
    assert all(one[spec.name].shape == spec.shape for spec in task.schema())


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_backbone_file_is_taken_whole_under_a_seeded_head(task, backbone, tmp_path, suffix):
    path = tmp_path / f"backbone{suffix}"
    backbone.save_weights(path) if suffix == ".weights.h5" else backbone.save(path)
    weights = task.initial_weights(0, str(path))
    expected = {variable.path: variable.numpy() for variable in backbone.weights}
    assert differing(expected, weights) == []
    assert set(weights) - set(expected) == {"head/kernel", "head/bias"}
    assert differing(weights, task.initial_weights(1, str(path))) == ["head/kernel"]


@pytest.mark.parametrize(("layout", "name"), [("older.h5", "a.weights.h5"), ("newer.weights.h5", "b.h5")])
def test_backbone_file_is_read_by_what_is_in_it_and_not_by_its_name(task, backbone, tmp_path, layout, name):
    path = tmp_path / layout
    backbone.save(path) if layout == "older.h5" else backbone.save_weights(path)
    weights = task.initial_weights(0, str(path.rename(tmp_path / name)))
    assert differing({variable.path: variable.numpy() for variable in backbone.weights}, weights) == []


def test_backbone_file_of_another_width_is_refused_with_what_to_do(task, tmp_path):
    backbone = keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.5, include_top=False, weights=None)
    backbone.save_weights(tmp_path / "wide.weights.h5")
    with pytest.raises(TaskError, match=r"wide\.weights\.h5 does not hold .* alpha 0\.35: .*set alpha accordingly"):
        task.initial_weights(0, str(tmp_path / "wide.weights.h5"))


def test_backbone_file_that_is_not_there_is_named(task):
    with pytest.raises(TaskError, match=r"no file nowhere\.h5; --backbone-weights takes"):
        task.initial_weights(0, "nowhere.h5")


def test_download_that_fails_names_the_options_that_mend_it_at_once(monkeypatch):
    # A proxy that is not there, so that the test is the same with and without internet; and a width nobody has used.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    task = BrainMri({**SMALL, "alpha": "1.3"})
    started = time.monotonic()
    for source in (None, "imagenet"):
        with pytest.raises(TaskError, match=r"could not download .*alpha 1\.3.*--backbone-weights FILE.*random"):
            task.initial_weights(0, source)
    assert time.monotonic() - started < 30


def test_published_weights_fit_the_full_width():
    path = shared_folder() / "weights" / "mobilenet_v2_1.00_224_imagenet_no_top.weights.h5"
    weights = BrainMri({}).initial_weights(0, str(path))
    assert sum(values.size for values in weights.values()) == 2_257_984 + 1_281


@pytest.mark.parametrize("names", [("no", "yes"), ("kein Tumor", "Tümor/a__b"), ("-.", "_")])
def test_class_names_survive_in_the_name_of_the_model(names):
    assert class_names_of(model_name(names)) == names


def test_names_of_other_models_hold_no_class_names():
    assert class_names_of("functional_3") is None
