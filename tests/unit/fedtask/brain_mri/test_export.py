"""Model files: written, loaded without this project, read again, used. Takes about 20 seconds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from PIL import Image

from fedtask.brain_mri.export import predict
from fedtask.brain_mri.task import BrainMri
from fedtask.images.site import open_holdout
from fedtask.task import TaskError
from tests.support.brain_mri import SMALL, differing

DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "brain_mri.md"

PLAIN_KERAS = """
import sys, keras, numpy as np
images, *paths = sys.argv[1:]
for path in paths:
    model = keras.models.load_model(path, compile=False)
    np.save(path + ".npy", model.predict(np.load(images), verbose=0))
assert not [name for name in sys.modules if name.startswith(("fedtask", "fedstream"))]
"""


@pytest.fixture(scope="module")
def weights(upper_task):
    return upper_task.initial_weights(3, "random")


@pytest.fixture(scope="module")
def exported(upper_task, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = upper_task.export(weights, folder, "GLOBAL_MODEL_MOB")
    assert paths == [folder / "GLOBAL_MODEL_MOB.keras", folder / "GLOBAL_MODEL_MOB.h5"]
    assert sorted(folder.iterdir()) == sorted(paths)
    return folder


def test_exported_models_take_plain_images_in_plain_keras(exported, phantom, tmp_path):
    images = open_holdout(phantom / "val", {}, ("no", "yes"), 64)[0].load(range(12))
    np.save(tmp_path / "images.npy", images)
    paths = [shutil.copy(exported / f"GLOBAL_MODEL_MOB{suffix}", tmp_path) for suffix in (".keras", ".h5")]
    subprocess.run([sys.executable, "-c", PLAIN_KERAS, tmp_path / "images.npy", *paths], check=True, cwd=tmp_path)
    by_hand = keras.models.load_model(exported / "GLOBAL_MODEL_MOB.keras", compile=False)(images.astype(np.float32))
    # Two processes may take different kernels: fifty layers of float32 then differ in the last bits, by up to 1e-5.
    for path in paths:
        np.testing.assert_allclose(np.load(f"{path}.npy"), by_hand, atol=1e-5)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_exported_model_read_again_is_the_same_bit_for_bit(upper_task, weights, exported, suffix):
    again = upper_task.read_model(exported / f"GLOBAL_MODEL_MOB{suffix}")
    assert list(again) == list(weights)
    assert differing(weights, again) == []


def test_weights_file_of_the_same_network_is_read(upper_task, weights, exported, tmp_path):
    keras.models.load_model(exported / "GLOBAL_MODEL_MOB.keras").save_weights(tmp_path / "some.weights.h5")
    assert differing(weights, upper_task.read_model(tmp_path / "some.weights.h5")) == []


def test_same_network_with_other_layer_names_is_read_from_h5(upper_task, tmp_path):
    images = keras.Input((64, 64, 3))
    backbone = keras.applications.MobileNetV2(
        input_tensor=images, input_shape=(64, 64, 3), alpha=0.35, include_top=False, weights=None
    )
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
    model = keras.Model(images, keras.layers.Dense(1, "sigmoid", name="somebody_elses_output")(pooled))
    model.save(tmp_path / "other.h5")
    read = upper_task.read_model(tmp_path / "other.h5")
    assert read["head/kernel"].tobytes() == model.layers[-1].kernel.numpy().tobytes()


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_another_network_is_refused(suffix, exported, tmp_path):
    wide = BrainMri({**SMALL, "alpha": "0.5"})
    path = exported / f"GLOBAL_MODEL_MOB{suffix}"
    if suffix == ".weights.h5":
        path = tmp_path / "some.weights.h5"
        keras.models.load_model(exported / "GLOBAL_MODEL_MOB.keras").save_weights(path)
    with pytest.raises(TaskError, match=r"(holds another|does not hold this) model") as error:
        wide.read_model(path)
    if suffix == ".h5":
        assert "Conv1/kernel is float32 [3, 3, 3, 16] there and float32 [3, 3, 3, 16] here" not in str(error.value)
        assert "there and float32" in str(error.value)


def external_values(group, key):
    group.create_dataset("kernel", shape=(1280, 1), dtype="u1", external=[(str(key), 0, 1280)])


def external_link(group, key):
    group["kernel"] = h5py.ExternalLink(str(key), "/secret")


def link_within(group, _key):
    group["kernel"] = h5py.SoftLink("/elsewhere")


def virtual_values(group, key):
    layout = h5py.VirtualLayout((1280, 1), "f4")
    layout[:] = h5py.VirtualSource(str(key), "secret", (1280, 1))
    group.create_virtual_dataset("kernel", layout)


@pytest.mark.parametrize("refer", [external_values, external_link, link_within, virtual_values])
def test_file_that_refers_to_another_one_is_refused(upper_task, exported, tmp_path, refer):
    (tmp_path / "authority.key").write_bytes(bytes(range(256)) * 5)
    shutil.copy(exported / "GLOBAL_MODEL_MOB.h5", tmp_path / "site.h5")
    with h5py.File(tmp_path / "site.h5", "r+") as file:
        head = file["model_weights/head/head"]
        del head["kernel"]
        refer(head, tmp_path / "authority.key")
    with pytest.raises(TaskError, match=r"site\.h5 refers to values outside itself, at .*kernel"):
        upper_task.read_model(tmp_path / "site.h5")


def test_array_of_a_size_that_is_only_claimed_is_refused_before_it_is_read(upper_task, exported, tmp_path):
    shutil.copy(exported / "GLOBAL_MODEL_MOB.h5", tmp_path / "site.h5")
    with h5py.File(tmp_path / "site.h5", "r+") as file:
        head = file["model_weights/head/head"]
        del head["kernel"]
        head.create_dataset("kernel", shape=(1 << 50, 1), dtype="f4", fillvalue=1.0, chunks=(1 << 20, 1))
    with pytest.raises(TaskError, match=r"head/kernel .*\[1125899906842624, 1\] there"):
        upper_task.read_model(tmp_path / "site.h5")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.keras", b"not a zip", "does not hold this model"),
        ("model.h5", b"not hdf5", "does not hold this model"),
        ("model.weights.h5", b"", "does not hold this model"),
        ("model.pkl", b"", "neither a .keras nor a .h5"),
    ],
)
def test_file_that_is_no_model_is_refused(upper_task, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message):
        upper_task.read_model(tmp_path / name)


def test_archive_of_another_width_is_refused_without_its_numbers(upper_task, tmp_path):
    wider = BrainMri({**SMALL, "alpha": "0.5"})
    wider.export(wider.initial_weights(3, "random"), tmp_path, "model")
    with pytest.raises(TaskError, match=r"does not hold this model .* shape") as caught:
        upper_task.read_model(tmp_path / "model.keras")
    assert "value=[" not in str(caught.value)


def test_archive_without_weights_is_refused(upper_task, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(TaskError, match=r"model\.weights\.h5"):
        upper_task.read_model(tmp_path / "model.keras")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_predict_gives_class_and_probability_per_image_and_names_what_it_cannot_use(
    upper_task, weights, exported, phantom, tmp_path, suffix
):
    paths = sorted((phantom / "val").rglob("*.png"))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    predictions = predict(exported / f"GLOBAL_MODEL_MOB{suffix}", [*paths[:5], tmp_path / "broken.png", *paths[5:]])
    usable = predictions[:5] + predictions[6:]
    assert [prediction.path for prediction in usable] == paths
    assert predictions[5].class_name is None
    assert predictions[5].problem == "not an image: its first bytes are of no image format"
    confusion = upper_task.evaluate(weights).confusion
    of_yes = sum(prediction.class_name == "yes" for prediction in usable)
    assert of_yes == confusion[0][1] + confusion[1][1]
    assert all(0.5 <= prediction.probability <= 1 for prediction in usable)


def test_lines_in_the_document_give_what_predict_gives(exported, tmp_path, monkeypatch):
    [lines] = re.findall(r"```python\n(import keras\n.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    shutil.copy(exported / "GLOBAL_MODEL_MOB.keras", tmp_path)
    rng = np.random.default_rng(0)  # of noise, each way of shrinking makes something else
    Image.fromarray(rng.integers(0, 255, (300, 200, 3), np.uint8)).save(tmp_path / "scan.png")
    monkeypatch.chdir(tmp_path)
    said = {}
    exec(lines, said)  # noqa: S102 - our own document
    [expected] = predict(tmp_path / "GLOBAL_MODEL_MOB.keras", [tmp_path / "scan.png"])
    of_class = {"yes": said["probability"], "no": 1 - said["probability"]}
    assert of_class[expected.class_name] == pytest.approx(expected.probability, abs=1e-5)


def test_predict_reads_any_size_of_image(exported, tmp_path):
    Image.new("L", (300, 200), 90).save(tmp_path / "large.png")
    [prediction] = predict(exported / "GLOBAL_MODEL_MOB.keras", [tmp_path / "large.png"])
    assert prediction.class_name in {"no", "yes"}


def test_predict_with_somebody_elses_model_says_so(tmp_path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)], name="other").save(tmp_path / "other.keras")
    with pytest.raises(TaskError, match="the model 'other', which is none that the brain MRI task exported"):
        predict(tmp_path / "other.keras", [])
