"""One labelled set divided among several clients, for trying a federation out on one folder.

Words: `even`; `quantity` or `quantity:BETA`; `dirichlet:ALPHA`.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import numpy.typing as npt

from fedtask.task import TaskError

Indices = npt.NDArray[np.int64]

MIN_EXAMPLES = 10
"""Fewest examples of a shard in the skewed divisions, as in Li et al.; fewer where there are not enough for all."""

DEFAULT_BETA = 0.5
"""Concentration of `quantity`, as in Li et al."""

_MAX_DRAWS = 200


def divide(
    labels: npt.NDArray[np.int64], num_shards: int, division: str, seed: int, groups: Indices | None = None
) -> list[Indices]:
    """Divide examples by their labels `int64 [n]` into `num_shards` disjoint sets of indices, each ascending.

    - `even`: sizes differ by at most 1, and so do the counts of each class.
    - `quantity:BETA`: sizes follow one draw from a symmetric Dirichlet(BETA), with each class divided alike.
    - `dirichlet:ALPHA`: each class is divided by its own draw from a symmetric Dirichlet(ALPHA) over the shards; a
      small ALPHA gives shards of few classes and of unequal size.

    The skewed ones are drawn again until every shard has `min(MIN_EXAMPLES, n // num_shards)` examples; if 200 draws
    do not do it, the largest shards give some of theirs. The same arguments give the same division with the
    same numpy. Skews as in Q. Li, Y. Diao, Q. Chen, B. He, "Federated Learning on Non-IID Data Silos: An Experimental
    Study", ICDE 2022, section IV; label skew by Dirichlet goes back to T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the
    Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019.

    Examples of one of `groups`, `int64 [n]`, such as a patient's, stay together: all that is said of examples then
    holds for groups, each of which is of the class of its first example.

    Raises:
        TaskError: the division is unknown, or there are fewer examples, or groups of them, than shards.
    """
    if groups is not None:
        _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
        parts = divide(labels[first], num_shards, division, seed)
        return [np.flatnonzero(np.isin(group_of, part)) for part in parts]
    kind, parameter = _parse(division)
    if num_shards < 1 or len(labels) < num_shards:
        raise TaskError(f"{len(labels)} examples cannot be divided among {num_shards} clients")
    rng = np.random.default_rng([seed, num_shards])
    if kind == "even":
        return _even(labels, num_shards, rng)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    least = min(MIN_EXAMPLES, len(labels) // num_shards)
    cuts = _draw_cuts(classes, num_shards, kind, parameter, least, rng)
    pieces = [np.split(rng.permutation(members), cut) for members, cut in zip(classes, cuts, strict=True)]
    shards = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
    return [np.sort(shard) for shard in _top_up(shards, least, rng)]


def limited(labels: npt.NDArray[np.int64], most: int, seed: int) -> Indices:
    """At most `most` of the examples with labels `int64 [n]`, as ascending indices; all of them if `most` is 0.

    Each class keeps its share as nearly as whole examples allow. The same arguments give the same choice.
    """
    if not 0 < most < len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng([seed, most])
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    shares = np.array([len(members) * most / len(labels) for members in classes])
    counts = np.floor(shares).astype(np.int64)
    counts[np.argsort(counts - shares, kind="stable")[: most - counts.sum()]] += 1  # the largest remainders
    chosen = [rng.permutation(members)[:count] for members, count in zip(classes, counts, strict=True)]
    return np.sort(np.concatenate(chosen))


def require_division(division: str) -> None:
    """See that `divide` knows the words.

    Raises:
        TaskError: it does not.
    """
    _parse(division)


def _parse(division: str) -> tuple[str, float]:
    kind, colon, text = division.partition(":")
    try:
        value = float(text) if colon else DEFAULT_BETA
    except ValueError:
        value = math.nan
    known = kind == "quantity" or (kind == "dirichlet" and bool(colon)) or division == "even"
    if not known or not (math.isfinite(value) and value > 0.0):
        raise TaskError(
            f"unknown division {division!r}; use even, quantity, quantity:BETA or dirichlet:ALPHA with a number above "
            "0, such as dirichlet:0.5"
        )
    return kind, value


def _even(labels: npt.NDArray[np.int64], num_shards: int, rng: np.random.Generator) -> list[Indices]:
    """Deal the examples out class by class, going on with the next shard where the class before ended."""
    order = np.concatenate([rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)])
    return [np.sort(order[shard::num_shards]) for shard in range(num_shards)]


def _draw_cuts(
    classes: list[Indices], num_shards: int, kind: str, parameter: float, least: int, rng: np.random.Generator
) -> Indices:
    """Where to cut each class into shards, `int64 [num_classes, num_shards - 1]`; drawn until each has enough."""
    sizes = np.array([len(members) for members in classes])
    cuts = np.empty((len(classes), num_shards - 1), np.int64)
    for _ in range(_MAX_DRAWS):
        draws = len(classes) if kind == "dirichlet" else 1
        shares = np.stack([_draw_shares(parameter, num_shards, rng) for _ in range(draws)])
        cuts = np.rint(np.cumsum(shares, axis=1)[:, :-1] * sizes[:, None]).astype(np.int64)
        counts = np.diff(cuts, axis=1, prepend=0, append=sizes[:, None])
        if counts.sum(axis=0).min() >= least:
            break
    return cuts


def _draw_shares(concentration: float, num_shards: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    shares = rng.dirichlet(np.full(num_shards, concentration))
    # A very small concentration underflows to 0/0; its limit is everything to one shard.
    return shares if np.isfinite(shares).all() else np.eye(num_shards)[rng.integers(num_shards)]


def _top_up(shards: list[Indices], least: int, rng: np.random.Generator) -> list[Indices]:
    """Move random examples from the largest shard until none has fewer than `least`."""
    shards = [cast(Indices, rng.permutation(shard)) for shard in shards]
    for place in range(len(shards)):
        while len(shards[place]) < least:
            largest = max(range(len(shards)), key=lambda other: len(shards[other]))
            shards[place] = np.append(shards[place], shards[largest][-1])
            shards[largest] = shards[largest][:-1]
    return shards
