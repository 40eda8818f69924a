"""The head and its backbone together: features of images, scores of the whole model, files for plain Keras. 30 s."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedclient.features import make_features
from fedstream.manifest import Digest
from fedtask.brain_mri.phantom import write_phantom
from fedtask.brain_mri_head.features import Features, read_features
from fedtask.brain_mri_head.settings import backbone_features
from fedtask.brain_mri_head.task import BrainMriHead
from fedtask.task import SiteOptions, TaskError, Weights
from tests.support.brain_mri import differing, ignore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SETTINGS = {"alpha": "0.35", "image_size": "64", "backbone": "random", "learning_rate": "0.01", "epochs": "30"}


@dataclass(frozen=True, slots=True)
class Trained:
    """A site that had features made of images and trained on them; `images` are a folder of the phantom."""

    said: list[str]
    features: Features
    task: BrainMriHead
    weights: Weights
    images: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("head")
    images = write_phantom(folder / "phantom", 60, 24, 0.0, 0, 64)
    words = [f"{name}={value}" for name, value in SETTINGS.items() if name != "backbone"]
    said = list(make_features(str(images), None, folder / "site.safetensors", "random", words))
    task = BrainMriHead(SETTINGS)
    task.open_site(SiteOptions(folder / "site.features"))
    base = task.initial_weights(0, None)
    tuned = task.fine_tune(base, replace(task.default_plan(), early_stopping_patience=0), ignore)
    return Trained(said, read_features(folder / "site.safetensors"), task, tuned.weights, images)


def test_features_command_writes_both_forms_and_says_the_servers_settings(trained: Trained) -> None:
    assert [line.partition(": ")[2] for line in trained.said if line.startswith("wrote")] == [
        "60 training and 24 validation examples"
    ] * 2
    assert trained.said[-1].startswith("the coordinator's settings: --task brain_mri_head --task-set backbone=random")
    assert (trained.features.train.x.shape, trained.features.generated) == ((60, 1280), True)


def test_features_of_too_few_images_to_validate_on_are_made_and_trained_on(tmp_path: Path) -> None:
    for split in ("no", "yes"):
        (tmp_path / "scans" / "train" / split).mkdir(parents=True)
        Image.linear_gradient("L").rotate(20 * len(split)).save(tmp_path / "scans" / "train" / split / "only.png")
    words = [f"{name}={value}" for name, value in SETTINGS.items() if name != "backbone"]
    said = list(make_features(str(tmp_path / "scans"), None, tmp_path / "site.v1", "random", words))
    paths = [tmp_path / "site.v1.safetensors", tmp_path / "site.v1.features"]
    assert [line for line in said if line.startswith("wrote")] == [
        f"wrote {path}: 2 training and 0 validation examples" for path in paths
    ]
    task = BrainMriHead(SETTINGS)
    assert task.open_site(SiteOptions(paths[1])).counts == {"train": {"no": 1, "yes": 1}, "val": {"no": 0, "yes": 0}}


def test_scores_of_images_are_those_of_their_features(trained: Trained, tmp_path: Path) -> None:
    server = BrainMriHead(SETTINGS)
    server.open_holdout(trained.images / "val", {})
    of_images = server.evaluate(trained.weights)
    head = trained.task._head(trained.weights)
    of_features = head.scores(trained.features.val, "")
    assert of_images.num_examples == 24
    assert of_images.metrics["loss"] == pytest.approx(of_features["loss"], rel=1e-4)
    assert of_images.metrics["accuracy"] == of_features["accuracy"]


def test_features_file_that_is_missing_is_not_taken_for_a_folder_of_images(tmp_path: Path) -> None:
    server = BrainMriHead(SETTINGS)
    for name in ("holdout.features", "holdout.safetensors"):
        with pytest.raises(TaskError, match=f"looked for the features file {tmp_path}/{name} and found none"):
            server.open_holdout(tmp_path / name, {})


def test_exported_model_takes_images_in_plain_keras_and_reads_back_as_head(trained: Trained, tmp_path: Path) -> None:
    import keras

    from fedtask.images.decode import decode_image

    server = BrainMriHead(SETTINGS)
    paths = server.export(trained.weights, tmp_path, "GLOBAL_MODEL")
    assert [path.name for path in paths] == ["GLOBAL_MODEL.safetensors", "GLOBAL_MODEL.keras", "GLOBAL_MODEL.h5"]
    image = min((trained.images / "val" / "yes").iterdir())
    pixels = np.array([decode_image(image, 64)], np.float32)
    (probability,) = np.asarray(keras.models.load_model(paths[1])(pixels))[:, 0].tolist()
    num_no = len(list((trained.images / "val" / "no").iterdir()))
    expected = trained.task._head(trained.weights).probabilities(trained.features.val.x[[num_no]])
    assert probability == pytest.approx(expected[0], abs=1e-3)
    for path in paths:
        assert differing(trained.weights, server.read_model(path)) == []


def test_site_exports_the_head_alone(trained: Trained, tmp_path: Path) -> None:
    assert [path.name for path in trained.task.export(trained.weights, tmp_path, "m")] == ["m.safetensors"]


def test_backbone_file_that_is_not_the_sites_is_refused(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    path.write_bytes(b"other")
    wanted = f"sha256:{Digest.of(b'right').hex}"
    settings = SETTINGS | {"backbone": wanted}
    for more, says in (({}, "name its file"), ({"backbone_file": str(path)}, f"and not {wanted}")):
        with pytest.raises(TaskError, match=says):
            BrainMriHead(settings | more).export(trained.weights, tmp_path, "m")


@pytest.mark.parametrize("alpha", [0.35, 1.3, 1.4])
def test_number_of_features_is_that_of_keras(alpha: float) -> None:
    import keras

    model = keras.applications.MobileNetV2((32, 32, 3), alpha=alpha, include_top=False, weights=None)
    assert model.output.shape[-1] == backbone_features(alpha)
