"""A validation split for a site that has none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

VAL_FRACTION = 0.15


def stratified_split(
    labels: Indices, groups: Indices, seed: int, val_fraction: float = VAL_FRACTION
) -> tuple[Indices, Indices]:
    """Indices of the train and the validation images, each ascending; together they are all of them.

    Per class, `val_fraction` of the images are for validation, as near as whole groups allow. A class of two groups or
    more has at least one image on either side; one with a single group is for training only. A group that holds several
    classes counts as its first image's.

    Args:
        labels: `int64 [n]`.
        groups: of images that must not be parted, such as near-duplicates: `int64 [n]`, the smallest index of each
            image's group.
        seed: of the choice.
        val_fraction: above 0, below 1.
    """
    rng = np.random.default_rng([seed, 0x5EED5])
    leaders, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    in_val = np.zeros(len(leaders), bool)
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels[leaders] == label))
        if len(of_class) > 1:
            in_val[_pick(of_class, sizes[of_class], val_fraction)] = True
    return np.flatnonzero(~in_val[group_of]), np.flatnonzero(in_val[group_of])


def is_near(labels: Indices, val: Indices, val_fraction: float = VAL_FRACTION) -> bool:
    """Whether each class has half to twice as many images in `val` as it should."""
    sizes, chosen = np.bincount(labels), np.bincount(labels[val], minlength=int(labels.max(initial=-1)) + 1)
    return bool(np.all((chosen * 2 >= sizes * val_fraction) & (chosen <= 2 * sizes * val_fraction)))


def joined(groups: Indices, others: Indices) -> Indices:
    """Groups of which none parts a group of either: `int64 [n]`, the smallest index of each image's group.

    Args:
        groups: `int64 [n]`, not negative; equal numbers are one group.
        others: likewise.
    """
    leaders = np.arange(len(groups))
    while True:
        lower = _lowest(_lowest(leaders, groups), others)
        if np.array_equal(lower, leaders):
            return leaders
        leaders = lower


def _lowest(values: Indices, groups: Indices) -> Indices:
    """For each image the smallest value within its group."""
    lowest = np.full(int(groups.max(initial=-1)) + 1, len(groups))
    np.minimum.at(lowest, groups, values)
    return lowest[groups]


def _pick(groups: Indices, sizes: Indices, val_fraction: float) -> list[int]:
    """The groups that fit, in the order given; the smallest one if none fits; never all."""
    room = max(1, round(float(sizes.sum()) * val_fraction))
    picked: list[int] = []
    for group, size in zip(groups.tolist(), sizes.tolist(), strict=True):
        if size <= room and len(picked) < len(groups) - 1:
            picked.append(group)
            room -= size
    return picked or [int(groups[np.argmin(sizes)])]
