"""A Keras model's weights as tensors of a schema, and its files. Importing this module imports tensorflow."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedstream.dtypes import DataType
from fedstream.schema import ModelSchema, TensorRole, TensorSpec
from fedtask.checkpoints import enumerate_some, in_schema_order
from fedtask.frameworks import keras, tf
from fedtask.task import TaskError, Weights

_WEIGHTS_IN_ARCHIVE = "model.weights.h5"
_MOST_WEIGHTS_BYTES = 8 << 30
"""Bound on what a `.keras` archive may unfold to."""


def prepare_devices() -> None:
    """Let a GPU, where there is one, hand out its memory as it is needed. Idempotent."""
    for gpu in tf.config.list_physical_devices("GPU"):
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            return  # already in use by this process; nothing can be changed any more


def build_repeatably(build: Callable[[], Any], seed: int) -> Any:
    """What `build` gives, with weights by `seed`, and layer names that do not count on from models built before."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed % 2**32)
    return build()


def schema_of(model: Any) -> ModelSchema:
    """The schema of a built Keras model: its weights in model order, named by their paths.

    What training changes is trainable: the weights that gradients reach, and the moving statistics of a BatchNorm that
    is not frozen, which have the role `STATISTIC` either way.

    Raises:
        TaskError: two weights share a name, or one's dtype cannot travel.
    """
    reached = {id(variable) for variable in model.trainable_weights}
    statistics = {id(v): layer for layer in _batch_norms(model) for v in (layer.moving_mean, layer.moving_variance)}
    specs = []
    for variable in model.weights:
        norm = statistics.get(id(variable))
        moves = id(variable) in reached if norm is None else bool(norm.trainable)
        role = TensorRole.WEIGHT if norm is None else TensorRole.STATISTIC
        specs.append(TensorSpec(variable.path, _dtype(variable), tuple(variable.shape), moves, role))
    try:
        return ModelSchema(tuple(specs))
    except ValueError as error:
        raise TaskError(f"{error}; give the layers names of their own") from error


def _dtype(variable: Any) -> DataType:
    try:
        return DataType.of(np.dtype(variable.dtype))
    except (ValueError, TypeError) as error:
        raise TaskError(f"weight {variable.path}: {error}") from error


def _batch_norms(layer: Any) -> Iterator[Any]:
    if isinstance(layer, keras.layers.BatchNormalization):
        yield layer
    for inner in getattr(layer, "layers", ()):
        yield from _batch_norms(inner)


def read_weights(model: Any) -> dict[str, np.ndarray]:
    """Copies of the model's weights, by schema name, in order."""
    return {variable.path: np.array(variable.value.numpy()) for variable in model.weights}


def assign_weights(model: Any, weights: Weights) -> None:
    """Give the model these weights."""
    for variable in model.weights:
        variable.assign(weights[variable.path])


def load_file(model: Any, path: Path) -> dict[str, np.ndarray]:
    """Weights of a `.keras`, `.h5` or `.weights.h5` file of the same architecture as `model`, into which they go.

    Only arrays are read; neither code nor an architecture from the file is ever run.

    Raises:
        TaskError: there is no such file, it is of another kind, or it holds another model.
    """
    if not path.is_file():
        raise TaskError(f"there is no file {path}")
    try:
        if path.suffix == ".keras":
            _load_archive(model, path)
        elif path.name.endswith(".weights.h5"):
            model.load_weights(path)
        elif path.suffix in {".h5", ".hdf5"}:
            return _load_legacy(model, path)
        else:
            raise TaskError(f"{path} is neither a .keras nor a .h5 nor a .weights.h5 file")
    except TaskError:
        raise
    except Exception as error:  # h5py's, zipfile's and Keras's errors for bad content have no common parent
        raise TaskError(f"{path} does not hold this model ({_summary(model)}): {_first_lines(error)}") from error
    return read_weights(model)


def save_model(model: Any, folder: Path, stem: str) -> list[Path]:
    """Write the whole model, for plain Keras to load, as `stem.keras` and `stem.h5`."""
    paths = [folder / f"{stem}.keras", folder / f"{stem}.h5"]
    for path in paths:
        # Renamed into place: whoever watches the folder never sees half a model.
        temporary = path.with_name(f".{path.name}{path.suffix}")
        model.save(temporary)
        temporary.replace(path)
    return paths


def _load_archive(model: Any, path: Path) -> None:
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        if archive.getinfo(_WEIGHTS_IN_ARCHIVE).file_size > _MOST_WEIGHTS_BYTES:
            raise TaskError(f"{path} claims to hold more than {_MOST_WEIGHTS_BYTES >> 30} GiB of weights")
        model.load_weights(archive.extract(_WEIGHTS_IN_ARCHIVE, folder))


def _load_legacy(model: Any, path: Path) -> dict[str, np.ndarray]:
    """Read `.h5` as Keras's older format lays it out, where every array stands under its layer's name.

    Read here rather than by Keras, which names neither the layer nor both shapes where a model differs. Layers may have
    other names than here if there are as many arrays, of the same shapes, in the same order. No array is read before
    its shape is known to fit: a file of a few kilobytes can claim any.
    """
    with h5py.File(path, "r") as file:
        root = _own(file, "model_weights") if "model_weights" in file else file
        if "layer_names" not in root.attrs:
            raise TaskError(f"{path} holds no model that Keras saved; a file of weights alone ends in .weights.h5")
        found = list(_legacy_datasets(root))
        wanted = [(variable.path, tuple(variable.shape)) for variable in model.weights]
        if [dataset.shape for _, dataset in found] != [shape for _, shape in wanted]:
            in_schema_order(schema_of(model), dict(found), path)  # explains by name what differs, if names tell
            raise TaskError(f"{path} holds another model: {_first_difference(found, wanted)}")
        for variable, (_, dataset) in zip(model.weights, found, strict=True):
            variable.assign(np.asarray(dataset))
    return read_weights(model)


def _legacy_datasets(root: Any) -> Iterator[tuple[str, Any]]:
    for layer_name in root.attrs["layer_names"]:
        group = _own(root, _text(layer_name))
        for weight_name in group.attrs["weight_names"]:
            name = _text(weight_name)
            yield f"{_text(layer_name)}/{name.rsplit('/', 1)[-1].split(':')[0]}", _own(group, name)


def _own(group: Any, path: str) -> Any:
    """What stands at `path` in the file itself.

    A link and a dataset may also name any other file that this user may read, such as a key: its bytes would go into a
    model for everyone to read.

    Raises:
        TaskError: it is elsewhere.
        KeyError: there is no such thing.
    """
    for name in path.split("/"):
        link = group.get(name, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            raise TaskError(f"{group.file.filename} refers to values outside itself, at {path}")
        group = group[name]
    if isinstance(group, h5py.Dataset) and (group.external is not None or group.is_virtual):
        raise TaskError(f"{group.file.filename} refers to values outside itself, at {path}")
    return group


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _first_difference(found: list[tuple[str, Any]], wanted: list[tuple[str, tuple[int, ...]]]) -> str:
    differing = [
        f"{name} {list(dataset.shape)} there and {here} {list(shape)} here"
        for (name, dataset), (here, shape) in zip(found, wanted, strict=False)
        if dataset.shape != shape
    ]
    return enumerate_some([f"{len(found)} arrays there and {len(wanted)} here", *differing])


_VALUES = " Target variable: <Variable"
"""Where Keras begins to list numbers of a weight whose shape in a file is another."""


def _summary(model: Any) -> str:
    return f"{len(model.weights)} arrays, {model.count_params():,} numbers"


def _first_lines(error: Exception) -> str:
    text, *_ = " ".join(str(error).split()).partition(_VALUES)
    return text[:500] or type(error).__name__
