"""What the frozen part of the network makes of each image, computed once and kept.

Training the upper part alone would spend nine tenths of its time on recomputing the lower part, whose weights do not
change in a whole federation. So the features at the cut are kept: per image and per variant (see `augmentation`), as
float16, which halves the space and changes them less than the next BatchNorm can tell (measured: docs/adr/0004).

Importing this imports tensorflow.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np
import numpy.typing as npt

from fedstream.manifest import raw_bytes
from fedstream.sizes import size
from fedtask.brain_mri import augmentation
from fedtask.brain_mri.augmentation import apply_changes, variant_change
from fedtask.brain_mri.model import Network
from fedtask.frameworks import tf
from fedtask.images.image_set import ImageSet
from fedtask.keras_training import Indices, Labels
from fedtask.task import Weights

Half = npt.NDArray[np.float16]

BATCH = 4
"""Images per step of the lower part. What 32 make of its first layers, 150 MB a layer, fits no processor's cache, and
took twice as long an image. The last batch is filled up, so that an image's features never depend on how many others
were missing beside it."""

_CRC_BYTES = 4
_PRIVATE_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC

LEAST_FREE_BYTES = 2**30
_PUTS_A_LOOK = 64
"""So many are written between two looks at how much space there is."""

MEMORY_BUDGET_BYTES = 2**30
"""Room for 28,000 images at `block_12_add` of the full width."""


class FeatureStore(Protocol):
    """Keeps arrays by name. It may forget any of them: what is missing is computed again."""

    def get(self, name: str) -> Half | None:
        """The array of that name, flat, or `None`."""

    def put(self, name: str, features: Half) -> None:
        """Keep the array."""

    def keep_only(self, ending: str) -> None:
        """Forget all whose names end otherwise: they are of other weights, and will not be asked for again."""


class MemoryStore:
    """Keeps features in memory, up to a budget; what does not fit is not kept."""

    def __init__(self, budget_bytes: int = MEMORY_BUDGET_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._kept: dict[str, Half] = {}

    def get(self, name: str) -> Half | None:
        return self._kept.get(name)

    def put(self, name: str, features: Half) -> None:
        if features.nbytes <= self._budget_bytes and name not in self._kept:
            self._budget_bytes -= features.nbytes
            self._kept[name] = features.ravel().copy()

    def keep_only(self, ending: str) -> None:
        for name in [name for name in self._kept if not name.endswith(ending)]:
            self._budget_bytes += self._kept.pop(name).nbytes


class DiskStore:
    """Keeps features as files with a checksum, which their owner alone may read: they are next to the images.

    Several processes may share the folder. What the disk does not take is kept in memory, as far as that has room:
    without it, training would compute all of it again in each epoch.

    Args:
        folder: its own.
        least_free_bytes: with less space than this on the disk, no more are kept.
    """

    def __init__(self, folder: Path, least_free_bytes: int = LEAST_FREE_BYTES) -> None:
        self._folder, self._least_free_bytes = folder, least_free_bytes
        self._spare = MemoryStore()
        self._is_refused = False
        self._num_put = 0
        self._is_full = False

    def get(self, name: str) -> Half | None:
        try:
            content = self._path(name).read_bytes()
        except OSError:  # not there, or of another user, or on a disk that fails
            return self._spare.get(name)
        body = content[_CRC_BYTES:]
        # Files are not synced, so after a power failure one may be there and hold anything.
        whole = google_crc32c.value(body) == int.from_bytes(content[:_CRC_BYTES], "little") and body
        return np.frombuffer(body, np.float16) if whole else self._spare.get(name)

    def put(self, name: str, features: Half) -> None:
        path, body = self._path(name), features.tobytes()
        # One name for all tries, so that what a killed process left is written over. Should two processes write it at
        # the same time, the checksum tells, and it is computed again.
        temporary = path.with_suffix(".partial")
        try:
            self._require_room()
            _make_private(path.parent, self._folder)
            with os.fdopen(os.open(temporary, _PRIVATE_FILE, 0o600), "wb") as file:
                file.write(google_crc32c.value(body).to_bytes(_CRC_BYTES, "little") + body)
            with contextlib.suppress(FileNotFoundError):  # another process was faster with the same
                temporary.replace(path)
        except OSError as error:
            if not self._is_refused:
                self._is_refused = True
                sys.stderr.write(f"features are kept in memory, and made anew after a restart: {error}\n")
            self._spare.put(name, features)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def keep_only(self, ending: str) -> None:
        self._spare.keep_only(ending)
        for path in self._folder.glob("*/*"):
            if not path.stem.endswith(ending):
                with contextlib.suppress(OSError):  # what cannot be removed is only not used
                    path.unlink()

    def _require_room(self) -> None:
        self._num_put += 1
        if self._num_put % _PUTS_A_LOOK == 1 and self._folder.is_dir():
            self._is_full = shutil.disk_usage(self._folder).free < self._least_free_bytes
        if self._is_full:
            raise OSError(errno.ENOSPC, f"less than {size(self._least_free_bytes)} are free", str(self._folder))

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / f"{name}.f16"


def _make_private(folder: Path, above: Path) -> None:
    """Make a folder, and the one above it, for their owner alone."""
    above.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)


class Activations:
    """Features of images at the network's cut.

    Args:
        network: its `lower` must not be `None`.
        store: where features are kept.
        strength: of the augmentation that makes variants.
    """

    def __init__(self, network: Network, store: FeatureStore, strength: float) -> None:
        assert network.lower is not None
        self._network = network
        self._store = store
        self._strength = strength
        self._shape = tuple(network.lower.output.shape[1:])
        inputs = tf.TensorSpec([BATCH, *network.lower.input.shape[1:]], tf.float32)
        self._forward = tf.function(lambda x: network.lower(x, training=False), [inputs], jit_compile=False)
        self._key = ""

    def use(self, weights: Weights) -> None:
        """Look features up as made by these weights; the network must have them already."""
        digest = hashlib.sha256(f"augmentation {augmentation.VERSION} {self._strength!r}\n".encode())
        for name in self._network.frozen_names:
            digest.update(f"{name} {weights[name].shape}\n".encode())
            digest.update(raw_bytes(weights[name]))
        key = digest.hexdigest()[:24]
        if key != self._key:
            self._key = key
            self._store.keep_only(f"-{key}")

    def prepare(self, images: ImageSet, num_variants: int, progress: Callable[[float], None]) -> None:
        """Compute and keep what is missing of the images' first variants."""
        missing = self.missing(images, num_variants)
        for start in range(0, len(missing), BATCH):
            self._compute(images, missing[start : start + BATCH])
            progress(min(1.0, (start + BATCH) / len(missing)))

    def missing(self, images: ImageSet, num_variants: int) -> list[tuple[int, int]]:
        """Index and variant of everything that is not kept, whole and well."""
        wanted = itertools.product(range(len(images)), range(num_variants))
        return [(index, variant) for index, variant in wanted if self._kept(images.ids[index], variant) is None]

    def batch(self, images: ImageSet, chosen: Sequence[tuple[int, int]]) -> Half:
        """Features `float16 [len(chosen), ...]` for pairs of index and variant; computed where they are not kept."""
        kept = [self._kept(images.ids[index], variant) for index, variant in chosen]
        missing = [pair for pair, features in zip(chosen, kept, strict=True) if features is None]
        computed = iter(self._compute(images, missing) if missing else ())
        flat = [features if features is not None else next(computed).ravel() for features in kept]
        return np.array(flat, np.float16).reshape(len(chosen), *self._shape)

    def _compute(self, images: ImageSet, chosen: Sequence[tuple[int, int]]) -> Half:
        parts = []
        for start in range(0, len(chosen), BATCH):
            part = chosen[start : start + BATCH]
            pixels = images.load([index for index, _ in part]).astype(np.float32)
            for place, (index, variant) in enumerate(part):
                change = variant_change(images.ids[index], variant, self._strength)
                if change is not None:
                    pixels[place] = apply_changes(pixels[place : place + 1], [change])[0]
            filled = np.zeros((BATCH, *pixels.shape[1:]), np.float32)
            filled[: len(part)] = pixels
            parts.append(np.asarray(self._forward(filled))[: len(part)].astype(np.float16))
            for (index, variant), features in zip(part, parts[-1], strict=True):
                self._store.put(self._name(images.ids[index], variant), features)
        return np.concatenate(parts)

    def _kept(self, image_id: str, variant: int) -> Half | None:
        features = self._store.get(self._name(image_id, variant))
        return features if features is not None and features.size == np.prod(self._shape) else None

    def _name(self, image_id: str, variant: int) -> str:
        return f"{image_id}-{variant}-{self._key}"


class FeatureExamples:
    """Images as the upper part sees them: features, of which training draws one variant per image and epoch."""

    def __init__(self, images: ImageSet, activations: Activations, num_variants: int) -> None:
        self._images = images
        self._activations = activations
        self._num_variants = num_variants

    @property
    def labels(self) -> Labels:
        return self._images.labels

    def training_batch(self, indices: Indices, rng: np.random.Generator) -> Any:
        variants = rng.integers(self._num_variants, size=len(indices))
        chosen = list(zip(indices.tolist(), variants.tolist(), strict=True))
        return self._activations.batch(self._images, chosen).astype(np.float32)

    def plain_batch(self, indices: Indices) -> Any:
        return self._activations.batch(self._images, [(index, 0) for index in indices.tolist()]).astype(np.float32)


class ImageExamples:
    """Images as the whole network sees them; training changes each by a fresh chance every time."""

    def __init__(self, images: ImageSet, strength: float) -> None:
        self._images = images
        self._strength = strength

    @property
    def labels(self) -> Labels:
        return self._images.labels

    def training_batch(self, indices: Indices, rng: np.random.Generator) -> Any:
        pixels = self._images.load(indices)
        if not self._strength:
            return pixels
        return apply_changes(pixels, [augmentation.draw_change(rng, self._strength) for _ in indices])

    def plain_batch(self, indices: Indices) -> Any:
        return self._images.load(indices)
