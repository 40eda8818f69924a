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

NEAR_DISTANCE = 32
"""Images whose fingerprints differ in at most this many of 255 bits are near-duplicates.

Chosen by eye on 2,151 real slices from which pairs up to 10 bits (of another hash) had been removed. Pairs up to 36
bits were all one slice with another contrast, sharpening or margin, or a neighbouring slice of one patient; from about
44 bits on, different patients come in. At 32 there are 370 pairs, none of two classes, in groups of 6 at most; at 64,
1,505 pairs, 62 of two classes, in groups of up to 191.
"""

NUM_WORDS = 4
_GRID = 64
_FREQUENCIES = 16
_BLOCK = 256


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

    Ascending by `i`, then `j`. Every pair is compared: 1 to 2 s for 10,000 images with 10,000, of which few are near.
    """
    starts = range(0, len(mine), _BLOCK)
    found = [_near_in_block(mine[at : at + _BLOCK], yours, distance) + np.array([at, 0]) for at in starts]
    return np.concatenate([np.empty((0, 2), np.int64), *found])


def first_near(mine: Fingerprints, yours: Fingerprints) -> npt.NDArray[np.int64]:
    """For each of `mine`, the place of its first near-duplicate in `yours`: `int64 [n]`, -1 where there is none."""
    (wanted, _, mine_at), (there, first, _) = _distinct(mine), _distinct(yours)
    pairs = near_pairs(wanted, there)
    found = np.full(len(wanted), len(yours))
    np.minimum.at(found, pairs[:, 0], first[pairs[:, 1]])
    return cast(npt.NDArray[np.int64], np.where(found < len(yours), found, -1)[mine_at])


def _distinct(prints: Fingerprints) -> tuple[Fingerprints, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The fingerprints without repetitions, where each stands first, and for every one given its place among them.

    Thousands may be the same, as of the empty slices at both ends of scans: their pairs would fill the memory.
    """
    return np.unique(prints, axis=0, return_index=True, return_inverse=True)


def _near_in_block(mine: Fingerprints, yours: Fingerprints, distance: int) -> npt.NDArray[np.int64]:
    """`near_pairs` of a block that is small enough for all its pairs to be in memory.

    Two fingerprints that are near in all are as near in one word at least as a fair share of the distance: that turns
    away nearly all pairs with one byte of memory per pair.
    """
    share = distance // NUM_WORDS
    candidate = np.zeros((len(mine), len(yours)), np.bool_)
    for word in range(NUM_WORDS):
        candidate |= np.bitwise_count(mine[:, None, word] ^ yours[None, :, word]) <= share
    pairs = np.argwhere(candidate)
    apart = np.bitwise_count(mine[pairs[:, 0]] ^ yours[pairs[:, 1]]).sum(axis=1)
    return cast(npt.NDArray[np.int64], pairs[apart <= distance])


def near_groups(fingerprints: Fingerprints) -> npt.NDArray[np.int64]:
    """Group near-duplicates, chains of them included: `int64 [n]`, the smallest index of each image's group."""
    distinct, _, at = _distinct(fingerprints)
    leader = list(range(len(distinct)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for start in range(0, len(distinct), _BLOCK):
        block = _near_in_block(distinct[start : start + _BLOCK], distinct[start:], NEAR_DISTANCE)
        for first, second in (block + start).tolist():
            leader[find(first)] = find(second)
    group = np.array([find(index) for index in range(len(leader))], np.int64)[at]
    lowest = np.full(len(distinct), len(fingerprints))
    np.minimum.at(lowest, group, np.arange(len(fingerprints)))
    return cast(npt.NDArray[np.int64], lowest[group])
