"""Where the weights of round 0 come from: ImageNet by way of Keras, a file, a saved model, or chance."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedtask.brain_mri.model import OUTPUT, Network, build_network
from fedtask.brain_mri.phantom_slice import draw_slice
from fedtask.brain_mri.settings import ALL, BrainMriSettings
from fedtask.frameworks import keras
from fedtask.keras_model import read_weights
from fedtask.task import TaskError, Weights

RANDOM = "random"
IMAGENET = "imagenet"
_MEASURED_SLICES = 32
_DOWNLOAD_TIMEOUT_SECONDS = 10.0
"""Without a word from the other side. A download that goes on may take longer."""


def initial_weights(settings: BrainMriSettings, seed: int, source: str | None) -> Weights:
    """Weights of the whole network. The head is always random, by `seed`.

    `source` is `None` or `imagenet` for ImageNet weights that Keras downloads (or has downloaded before), `random`, or
    the path of a file of backbone weights without top, `.h5` in either of Keras's two layouts.

    Raises:
        TaskError: the download failed, or the file does not fit; the message names what else can be done.
    """
    if source == RANDOM:
        return _random_weights(settings, seed)
    network = build_network(settings, seed)
    weights = read_weights(network.full)
    backbone = _downloaded(settings) if source in (None, IMAGENET) else _from_file(settings, Path(str(source)))
    return _with_backbone(network, weights, backbone)


def _random_weights(settings: BrainMriSettings, seed: int) -> Weights:
    """Random weights, with the statistics of every BatchNorm measured on generated slices.

    Fresh statistics (mean 0, variance 1) are so far from what goes through random weights that signal and gradient
    vanish in inference mode: a network with frozen BatchNorm then learns nothing at all, and one with moving
    statistics spends its first rounds on catching up. As in D. Mishkin, J. Matas, "All you need is a good init",
    ICLR 2016, the first batch puts that right.
    """
    measuring = replace(settings, fine_tune=ALL, batch_norm="train", batch_norm_momentum=0.0)
    network = build_network(measuring, seed)
    slices = [draw_slice((seed, 0, i), bool(i % 2), 0.0, settings.image_size) for i in range(_MEASURED_SLICES)]
    network.full(np.repeat(np.array(slices, np.float32)[..., None], 3, axis=-1), training=True)
    return read_weights(network.full)


def _with_backbone(network: Network, weights: dict[str, np.ndarray], backbone: Any) -> Weights:
    found = read_weights(backbone)
    missing = [name for name in weights if name not in found and not name.startswith(f"{OUTPUT}/")]
    assert not missing, missing  # both are made by the same function of Keras
    return {spec.name: found.get(spec.name, weights[spec.name]) for spec in network.schema}


def _downloaded(settings: BrainMriSettings) -> Any:
    try:
        with _timeout(_DOWNLOAD_TIMEOUT_SECONDS):
            return _backbone(settings, IMAGENET)
    except Exception as error:  # what fails between here and a file server has no common parent
        raise TaskError(
            f"Keras could not download ImageNet weights for MobileNetV2 (alpha {settings.alpha:g}): {_said(error)}. "
            "Give a file that holds them with --backbone-weights FILE (a .h5 without top, as Keras publishes them), or "
            "start from random weights with --backbone-weights random"
        ) from error


def _from_file(settings: BrainMriSettings, path: Path) -> Any:
    if not path.is_file():
        raise TaskError(
            f"there is no file {path}; --backbone-weights takes a file of weights without top, or {RANDOM!r}"
        )
    try:
        with _named_by_its_layout(path) as named:
            return _backbone(settings, str(named))
    except Exception as error:  # Keras's and h5py's errors for a file that does not fit have no common parent
        raise TaskError(
            f"{path} does not hold weights of MobileNetV2 without top, alpha {settings.alpha:g}: {_said(error)}. If "
            "they are of another width, set alpha accordingly"
        ) from error


@contextlib.contextmanager
def _named_by_its_layout(path: Path) -> Iterator[Path]:
    """The file under a name that tells Keras which of its two layouts it has.

    Keras goes by the name alone: what it publishes itself is of the older one, and could not be called `.weights.h5`.
    """
    with h5py.File(path, "r") as file:
        is_older = "layer_names" in file.get("model_weights", file).attrs
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / ("older.h5" if is_older else "newer.weights.h5")
        named.symlink_to(path.resolve())
        yield named


def _backbone(settings: BrainMriSettings, weights: str) -> Any:
    shape = (settings.image_size, settings.image_size, 3)
    with warnings.catch_warnings():
        # Of files by other versions of Keras, and of image sizes that have no weights of their own: both are fine.
        warnings.simplefilter("ignore")
        return keras.applications.MobileNetV2(
            input_shape=shape, alpha=settings.alpha, include_top=False, weights=weights
        )


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    # Keras takes no timeout; without one, a site whose firewall drops packets would wait for minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
