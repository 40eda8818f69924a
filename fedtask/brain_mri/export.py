"""Using an exported model: class and probability for image files. Only what the file itself says is relied on.

Importing this imports tensorflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedtask.brain_mri.model import class_names_of
from fedtask.frameworks import keras
from fedtask.images.decode import UnusableImage, decode_image
from fedtask.keras_model import prepare_devices
from fedtask.task import TaskError

_BATCH = 32


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one file.

    `probability` is that of `class_name`, 0.5 to 1. Both are `None` where the file cannot be used; `problem` says why.
    """

    path: Path
    class_name: str | None
    probability: float | None
    problem: str | None = None


def predict(model_path: Path, image_paths: Sequence[Path]) -> list[Prediction]:
    """Predict the class of each image, in order. An unusable file costs its own prediction only.

    Raises:
        TaskError: the model cannot be read, or is none that this task exported.
    """
    model, class_names = _load(model_path)
    predictions: list[Prediction] = []
    for start in range(0, len(image_paths), _BATCH):
        predictions += _predict_batch(model, class_names, image_paths[start : start + _BATCH])
    return predictions


def _load(path: Path) -> tuple[Any, tuple[str, ...]]:
    if not path.is_file():
        raise TaskError(f"there is no file {path}")
    prepare_devices()
    try:
        # Keras refuses code in a file (`safe_mode`), so that a model from elsewhere is no program.
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras's, h5py's and zipfile's errors have no common parent
        said = " ".join(str(error).split())[:400]
        raise TaskError(f"Keras cannot read a model from {path}: {said}. Give a .keras or .h5 file") from error
    names = class_names_of(model.name)
    if names is None or len(model.inputs[0].shape) != 4 or model.outputs[0].shape[-1] != 1:
        raise TaskError(f"{path} holds the model {model.name!r}, which is none that the brain MRI task exported")
    return model, names


def _predict_batch(model: Any, class_names: tuple[str, ...], paths: Sequence[Path]) -> list[Prediction]:
    size = model.inputs[0].shape[1]
    pixels, problems = [], {}
    for path in paths:
        try:
            pixels.append(decode_image(path, size))
        except UnusableImage as error:
            problems[path] = str(error)
    outputs = iter(np.asarray(model(np.array(pixels, np.float32), training=False))[:, 0].tolist() if pixels else ())
    return [
        Prediction(path, None, None, problems[path])
        if path in problems
        else _prediction(path, next(outputs), class_names)
        for path in paths
    ]


def _prediction(path: Path, probability: float, class_names: tuple[str, ...]) -> Prediction:
    label = int(probability > 0.5)
    return Prediction(path, class_names[label], probability if label else 1 - probability)
