"""Images that are nearly the same: found by a perceptual hash, so that no split puts twins on both sides.

The hash is the DCT hash known as pHash: 255 signs of the lowest 16 x 16 frequencies but the mean, against their median.
"""

from __future__ import annotations

import functools
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedtask.images.decode import Pixels

Fingerprints = npt.NDArray[np.uint64]
"""`uint64 [n, 4]`: 255 bits per image, and a constant 0."""

NEAR_DISTANCE = 10
"""Images whose fingerprints differ in at most this many of 255 bits are near-duplicates."""

NUM_WORDS = 4
_GRID = 64
_FREQUENCIES = 16
_BLOCK = 512


def fingerprint(pixels: Pixels) -> Fingerprints:
    """The perceptual hash of one image `uint8 [h, w, 3]`, as `uint64 [4]`."""
    grey = Image.fromarray(pixels).convert("L").resize((_GRID, _GRID), Image.Resampling.BOX)
    basis = _dct_basis()
    spectrum = (basis @ np.asarray(grey, np.float64) @ basis.T).ravel()[1:]
    spectrum = np.round(spectrum, 6)  # else the bits of an image of one colour are those of its rounding errors
    bits = np.append(spectrum > np.median(spectrum), False)
    return cast(Fingerprints, np.packbits(bits).view(np.uint64))


@functools.cache
def _dct_basis() -> npt.NDArray[np.float64]:
    """The first 16 rows of the DCT-II matrix, `[16, 64]`, unnormalised: only signs against a median count."""
    frequency, place = np.arange(_FREQUENCIES)[:, None], np.arange(_GRID)[None, :]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * _GRID))


def near_pairs(mine: Fingerprints, yours: Fingerprints, distance: int = NEAR_DISTANCE) -> npt.NDArray[np.int64]:
    """Every pair `(i, j)` with `mine[i]` and `yours[j]` at most `distance` bits apart, as `int64 [num_pairs, 2]`.

    The first 64 bits alone turn away nearly all pairs, so the time is that of one word per pair.
    """
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(mine), _BLOCK):
        block = mine[start : start + _BLOCK]
        first_word = np.bitwise_count(block[:, None, 0] ^ yours[None, :, 0])
        rows, columns = np.nonzero(first_word <= distance)
        apart = np.bitwise_count(block[rows] ^ yours[columns]).sum(axis=1)
        near = apart <= distance
        found.append(np.stack([rows[near] + start, columns[near]], axis=1))
    return np.concatenate(found)


def near_groups(fingerprints: Fingerprints, distance: int = NEAR_DISTANCE) -> npt.NDArray[np.int64]:
    """Group near-duplicates, chains of them included: `int64 [n]`, the smallest index of each image's group."""
    leader = list(range(len(fingerprints)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for first, second in near_pairs(fingerprints, fingerprints, distance).tolist():
        if first < second:
            low, high = sorted((find(first), find(second)))
            leader[high] = low
    return np.array([find(index) for index in range(len(leader))], np.int64)
