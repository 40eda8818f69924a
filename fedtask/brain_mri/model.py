"""MobileNetV2 with a sigmoid head, cut in two where fine-tuning begins. Importing this imports tensorflow."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fedstream.schema import ModelSchema
from fedtask.brain_mri.settings import ALL, HEAD, BrainMriSettings
from fedtask.frameworks import keras
from fedtask.keras_model import schema_of

POOL = "pool"
OUTPUT = "head"
_NAME = "brain_mri"


@dataclass(frozen=True, slots=True)
class Network:
    """One model, whole and in parts that share its variables.

    `full` takes images `[n, size, size, 3]` of 0 to 255 and gives the probability of class 1, `[n, 1]`. `lower` is its
    frozen part, from images to features, and `None` if nothing is frozen; `upper` goes on from there.
    """

    full: Any
    lower: Any | None
    upper: Any
    schema: ModelSchema

    @property
    def frozen_names(self) -> tuple[str, ...]:
        """Names of the tensors that features depend on, in order."""
        return tuple(variable.path for variable in self.lower.weights) if self.lower is not None else ()


def build_network(settings: BrainMriSettings, seed: int = 0) -> Network:
    """Build the network with random weights; `seed` decides them all."""
    keras.utils.set_random_seed(seed)
    size = settings.image_size
    images = keras.Input((size, size, 3), name="images")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1, name="rescale")(images)
    backbone = keras.applications.MobileNetV2(
        input_tensor=scaled, input_shape=(size, size, 3), alpha=settings.alpha, include_top=False, weights=None
    )
    pooled = keras.layers.GlobalAveragePooling2D(name=POOL)(backbone.output)
    dropped = keras.layers.Dropout(settings.dropout, name="dropout")(pooled)
    initializer = keras.initializers.GlorotUniform(seed=seed)
    output = keras.layers.Dense(1, "sigmoid", kernel_initializer=initializer, name=OUTPUT)(dropped)
    full = keras.Model(images, output, name=model_name(settings.class_names))
    lower, upper = _cut(full, settings)
    _choose_trainable(full, upper, settings)
    return Network(full, lower, upper, schema_of(full))


def _cut(full: Any, settings: BrainMriSettings) -> tuple[Any | None, Any]:
    if settings.fine_tune == ALL:
        return None, full
    at = full.get_layer(POOL if settings.fine_tune == HEAD else settings.cut).output
    return keras.Model(full.input, at, name="lower"), keras.Model(at, full.output, name="upper")


def _choose_trainable(full: Any, upper: Any, settings: BrainMriSettings) -> None:
    in_upper = {layer.name for layer in upper.layers}
    for layer in full.layers:
        layer.trainable = layer.name in in_upper
        if isinstance(layer, keras.layers.BatchNormalization):
            # A BatchNorm that is not trainable runs in inference mode, also while the layers round it are trained.
            layer.trainable = layer.trainable and settings.batch_norm == "train"
            layer.momentum = settings.batch_norm_momentum


def model_name(class_names: tuple[str, ...]) -> str:
    """The name of a model, which carries its class names through every file format of Keras.

    Names of models may hold letters, digits, `.`, `-` and `_` only: all else is written as `.` and two hexadecimal
    digits per byte of UTF-8.
    """
    return "__".join((_NAME, *(_quote(name) for name in class_names)))


def class_names_of(name: str) -> tuple[str, ...] | None:
    """The class names in a model's name, or `None` if it is not one of `model_name`."""
    head, *quoted = name.split("__")
    return tuple(_unquote(part) for part in quoted) if head == _NAME and len(quoted) == 2 else None


def _quote(name: str) -> str:
    return re.sub(rb"[^A-Za-z0-9-]", lambda match: b".%02x" % match[0][0], name.encode()).decode("ascii")


def _unquote(text: str) -> str:
    plain = re.sub(rb"\.([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode("ascii"))
    return plain.decode("utf-8", "replace")
