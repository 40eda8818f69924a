"""A validation split for a site that has none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedtask.images.near_duplicates import Fingerprints, near_groups

VAL_FRACTION = 0.15


def stratified_split(
    labels: npt.NDArray[np.int64], fingerprints: Fingerprints, seed: int, val_fraction: float = VAL_FRACTION
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the train and the validation images, each ascending; together they are all of them.

    Per class, `val_fraction` of the images are for validation, as near as whole groups of near-duplicates allow. A
    class of two groups or more has at least one image on either side; one with a single group is for training only.
    A group that holds several classes counts as its first image's.
    """
    rng = np.random.default_rng([seed, 0x5EED5])
    leaders, group_of, sizes = np.unique(near_groups(fingerprints), return_inverse=True, return_counts=True)
    in_val = np.zeros(len(leaders), bool)
    for label in np.unique(labels):
        groups = rng.permutation(np.flatnonzero(labels[leaders] == label))
        if len(groups) > 1:
            in_val[_pick(groups, sizes[groups], val_fraction)] = True
    return np.flatnonzero(~in_val[group_of]), np.flatnonzero(in_val[group_of])


def _pick(groups: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], val_fraction: float) -> list[int]:
    """The groups that fit, in the order given; the smallest one if none fits; never all."""
    room = max(1, round(float(sizes.sum()) * val_fraction))
    picked: list[int] = []
    for group, size in zip(groups.tolist(), sizes.tolist(), strict=True):
        if size <= room and len(picked) < len(groups) - 1:
            picked.append(group)
            room -= size
    return picked or [int(groups[np.argmin(sizes)])]
