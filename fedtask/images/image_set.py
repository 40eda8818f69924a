"""Labelled images that are decoded when asked for, and kept decoded as far as a memory budget goes."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedtask.images.decode import Pixels, UnusableImage, decode_image
from fedtask.images.near_duplicates import Fingerprints
from fedtask.task import TaskError

DEFAULT_CACHE_BYTES = 2**30
"""Room for 7,133 images of 224 x 224."""

Indices = Sequence[int] | npt.NDArray[np.int64]


def pixel_id(pixels: Pixels) -> str:
    """sha256 of an image's shape and decoded, resized pixels, in hex.

    Of the pixels and not of the file, since that is what a network sees: whatever is kept under it (such as cached
    activations) goes out of use by itself when a decoder, the size or the file changes.
    """
    shape = "x".join(str(length) for length in pixels.shape)
    return hashlib.sha256(shape.encode() + b"\n" + pixels.tobytes()).hexdigest()


class PixelCache:
    """Decoded images by id, up to a budget of bytes; safe to share between threads and image sets.

    Once full it takes no more and drops nothing: training goes over all images again and again, and there a cache that
    drops the least recently used one drops each image just before it is wanted.
    """

    def __init__(self, budget_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()  # guards the two fields below
        self._images: dict[str, Pixels] = {}
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of pixels held; never above the budget."""
        return self._size_bytes

    def get(self, image_id: str) -> Pixels | None:
        """The image's pixels, read-only, or `None`."""
        with self._lock:
            return self._images.get(image_id)

    def offer(self, image_id: str, pixels: Pixels) -> None:
        """Keep a copy of `pixels` if there is room."""
        with self._lock:
            if image_id in self._images or self._size_bytes + pixels.nbytes > self._budget_bytes:
                return
            kept = pixels.copy()
            kept.flags.writeable = False
            self._images[image_id] = kept
            self._size_bytes += kept.nbytes


class ImageSet:
    """Images in a fixed order, with labels.

    `labels` is `int64 [n]` (read-only), `paths` and `ids` (see `pixel_id`) have one entry per image, `fingerprints` is
    `uint64 [n, 4]` (see `near_duplicates`), `size` is the side in pixels of the squares that `load` gives.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: npt.NDArray[np.int64],
        ids: Sequence[str],
        fingerprints: Fingerprints,
        size: int,
        cache: PixelCache,
    ) -> None:
        self.paths = tuple(paths)
        self.labels = np.array(labels, np.int64)
        self.labels.flags.writeable = False
        self.ids = tuple(ids)
        self.fingerprints = fingerprints
        self.size = size
        self._cache = cache

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, indices: Indices) -> Pixels:
        """Pixels of the images at `indices`, in that order, as a fresh `uint8 [len(indices), size, size, 3]`.

        Raises:
            TaskError: a file has gone, or its pixels have changed, since the set was opened.
        """
        pixels = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        missing = []
        for place, index in enumerate(indices):
            cached = self._cache.get(self.ids[index])
            if cached is None:
                missing.append((place, int(index)))
            else:
                pixels[place] = cached

        def decode_into_place(at: tuple[int, int]) -> None:
            pixels[at[0]] = self._decode(at[1])

        if missing:
            # Pillow lets go of the interpreter lock while it decodes and resizes.
            with ThreadPoolExecutor(num_decoding_threads()) as pool:
                for _ in pool.map(decode_into_place, missing):
                    pass  # asking for the result raises what the thread raised
        return pixels

    def subset(self, indices: Indices) -> ImageSet:
        """The images at `indices`, in that order; it shares this set's cache."""
        chosen = [int(index) for index in indices]
        return ImageSet(
            [self.paths[index] for index in chosen],
            self.labels[chosen],
            [self.ids[index] for index in chosen],
            self.fingerprints[chosen],
            self.size,
            self._cache,
        )

    def _decode(self, index: int) -> Pixels:
        path, image_id = self.paths[index], self.ids[index]
        try:
            pixels = decode_image(path, self.size)
        except UnusableImage as error:
            raise TaskError(f"{path} could be read when the folder was opened, but no longer: {error}") from error
        if pixel_id(pixels) != image_id:
            raise TaskError(f"{path} has changed since the folder was opened; start again to read the folder anew")
        self._cache.offer(image_id, pixels)
        return pixels


def num_decoding_threads() -> int:
    """One per processor, at most 8: beyond that the disk is the limit, and each may hold a large image."""
    return min(os.cpu_count() or 1, 8)
