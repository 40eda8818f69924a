"""Features and labels of a site, as files: what is learned on, in two forms that say the same.

`.safetensors` has `features` F32 `[n, d]`, `labels` U8 `[n]`, `split` U8 `[n]` (0 training, 1 validation), and in its
metadata `meaning` and `generated`. `.features` is for programs without a library; all numbers are little-endian:

    bytes        what
    8            `FSFEAT01`
    4            number of training examples, uint32
    4            number of validation examples, uint32
    4            d, numbers per example, uint32
    4            1 for generated data, else 0, uint32
    4            m, length of the next field, uint32
    m            the task's meaning, as its canonical description (tests/wire/vectors/schemas.txt)
    n            label of each example, uint8, training examples first
    n * d * 4    features of each example, float32, in the same order

The meaning names the classes and the backbone, so that no site learns on features that are not the federation's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from fedstream.files import RealFileSystem, write_durably
from fedtask.task import TaskError

MAGIC = b"FSFEAT01"
SAFETENSORS = ".safetensors"
PLAIN = ".features"

_HEADER = struct.Struct("<8s5I")
_MOST_MEANING_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Labelled:
    """`x` is `float32 [n, d]`, `y` is `int64 [n]`, 0 or 1."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: npt.NDArray[Any]) -> Labelled:
        """The examples at those indices, or where that mask is true."""
        return Labelled(self.x[chosen], self.y[chosen])


@dataclass(frozen=True, slots=True)
class Features:
    """What a features file holds. `meaning` is the canonical description of the task's meaning."""

    train: Labelled
    val: Labelled
    meaning: bytes
    generated: bool = False

    @property
    def every(self) -> Labelled:
        """Training examples, then validation examples."""
        parts = (self.train, self.val)
        return Labelled(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def write_features(features: Features, path: Path) -> None:
    """Write the file, in the form that its ending names, whole or not at all.

    Raises:
        TaskError: it ends otherwise.
    """
    kinds: Mapping[str, Callable[[Features], bytes]] = {SAFETENSORS: _as_safetensors, PLAIN: _as_plain}
    if path.suffix not in kinds:
        raise TaskError(f"{path}: a features file ends in {SAFETENSORS} or {PLAIN}")
    write_durably(RealFileSystem(), path, [kinds[path.suffix](features)])


def read_features(path: Path) -> Features:
    """Read a file of either form.

    Raises:
        TaskError: there is none, or it is not sound; the message says how.
    """
    try:
        features = _from_safetensors(path) if path.suffix == SAFETENSORS else _from_plain(path.read_bytes())
    except FileNotFoundError:
        raise TaskError(f"looked for the features file {path} and found none; `fedclient features` makes it") from None
    except Exception as error:  # safetensors', struct's and numpy's errors for bad content have no common parent
        raise TaskError(f"{path} is no sound features file: {error}") from error
    for examples in (features.train, features.val):
        if not np.isin(examples.y, (0, 1)).all() or not np.isfinite(examples.x).all():
            raise TaskError(f"{path} has labels other than 0 and 1, or features that are no finite numbers")
    return features


def _as_safetensors(features: Features) -> bytes:
    x, y = features.every.x, features.every.y.astype(np.uint8)
    split = np.repeat(np.array([0, 1], np.uint8), [len(features.train), len(features.val)])
    facts = {"meaning": features.meaning.decode(), "generated": str(int(features.generated))}
    return save({"features": x, "labels": y, "split": split}, facts)


def _from_safetensors(path: Path) -> Features:
    with safe_open(path, "numpy") as file:
        x, y = np.asarray(file.get_tensor("features"), np.float32), file.get_tensor("labels").astype(np.int64)
        in_val, facts = file.get_tensor("split") == 1, file.metadata()
    if x.ndim != 2 or not y.shape == in_val.shape == x.shape[:1]:
        raise ValueError(f"features {list(x.shape)}, labels {list(y.shape)} and split {list(in_val.shape)} do not fit")
    every = Labelled(x, y)
    return Features(every.take(~in_val), every.take(in_val), facts["meaning"].encode(), facts["generated"] == "1")


def _as_plain(features: Features) -> bytes:
    x, y = features.every.x.astype("<f4"), features.every.y.astype(np.uint8)
    numbers = (len(features.train), len(features.val), x.shape[1], int(features.generated), len(features.meaning))
    return _HEADER.pack(MAGIC, *numbers) + features.meaning + y.tobytes() + x.tobytes()


def _from_plain(content: bytes) -> Features:
    magic, num_train, num_val, width, generated, meaning_bytes = _HEADER.unpack_from(content)
    num, labels_at = num_train + num_val, _HEADER.size + meaning_bytes
    if magic != MAGIC or meaning_bytes > _MOST_MEANING_BYTES or len(content) != labels_at + num + 4 * num * width:
        raise ValueError("its beginning or its length is not that of the plain form")
    y = np.frombuffer(content, np.uint8, num, labels_at).astype(np.int64)
    x = np.frombuffer(content, "<f4", num * width, labels_at + num).reshape(num, width).astype(np.float32)
    every, is_val = Labelled(x, y), np.arange(num) >= num_train
    return Features(every.take(~is_val), every.take(is_val), content[_HEADER.size : labels_at], generated == 1)
