"""Whether an update may be part of the aggregate.

Checks of one update alone (`check_update`, `check_num_examples`) are made when it commits. The check against the cohort
(`check_cohort`) counts as it comes out when the round closes, on all updates that are in: before, it only says whether
the round can close. So nothing depends on who came first.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedserver.aggregation.errors import ImplausibleExamples, QuarantineReason, SchemaMismatch
from fedserver.aggregation.strategies import Strategy
from fedserver.aggregation.survey import Surveyed, survey
from fedstream.schema import ModelSchema
from fedtask.task import Weights

MIN_COHORT_FOR_NORM = 3
"""With two updates that disagree, nobody can say which of them is absurd."""

NORM_FACTOR = 100.0
"""How many times the median a pseudo-gradient may be long. Adam moves each weight by about its learning rate a step, so
honest lengths differ at most as the numbers of steps do (examples times epochs): 100 allows sites two orders of
magnitude apart, and finds an update scaled by 1e6, in which the whole model counts as movement."""


@dataclass(frozen=True, slots=True)
class ExampleLimits:
    """What `num_examples` an update may claim.

    `growth` is how many times the site's claim at joining it may be (folders grow while a federation runs); `maximum`
    caps both, inclusive: one site must not outweigh all others by a slip of the keyboard.
    """

    growth: float = 2.0
    maximum: int = 10_000_000

    def most(self, claimed: int) -> int:
        """Largest admissible `num_examples` of a site that claimed so many when it joined."""
        return min(math.floor(claimed * self.growth), self.maximum)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Why an update is left out, for tables and for people."""

    reason: QuarantineReason
    message: str


def check_update(schema: ModelSchema, base: Weights, tensors: Weights, *, threads: int = 1) -> Surveyed:
    """Check one update by itself: names, shapes, dtypes, and that all its values are finite, but in frozen tensors that
    are the base's.

    `tensors` may leave out what equals the base; a tensor whose bytes equal the base's is treated as left out.
    Integer and boolean tensors are held to the schema only: they are never averaged.

    Raises:
        SchemaMismatch: names the first tensor, in the update's order, that does not fit.
        NotFinite: names the first tensor, in schema order, and the first index in it.
    """
    for name, array in tensors.items():
        _check_against_schema(schema, name, array)
    return survey(schema, base, tensors, threads=threads)


def check_num_examples(num_examples: int, claimed: int, limits: ExampleLimits) -> None:
    """Check what an update says it was trained on against what the site said when it joined.

    Raises:
        ImplausibleExamples: below 1, or more than `limits.most(claimed)`.
    """
    if num_examples < 1:
        raise ImplausibleExamples(f"the update says it was trained on {num_examples} examples; at least 1 is needed")
    most = limits.most(claimed)
    if num_examples > most:
        raise ImplausibleExamples(
            f"the update says it was trained on {num_examples:,} examples; the site claimed {claimed:,} when it joined,"
            f" so at most {most:,} are plausible ({limits.growth:g} times the claim, never over {limits.maximum:,}). "
            "Start `fedclient run` again there, so that it says how many it has now"
        )


def weight_limits(strategy: Strategy, claimed: Mapping[int, int], limits: ExampleLimits) -> dict[int, float]:
    """The largest weight each rank can come to have, for `Accumulator`. `claimed`: `num_examples` at joining, by rank.

    Raises:
        ImplausibleExamples: a site's claim leaves no admissible `num_examples` at all.
    """
    for rank, examples in claimed.items():
        if limits.most(examples) < 1:
            raise ImplausibleExamples(f"the site at rank {rank} claimed {examples} examples; at least 1 is needed")
    return {rank: strategy.weight(rank, limits.most(examples)) for rank, examples in claimed.items()}


def check_cohort(norms: Mapping[int, float]) -> dict[int, Quarantine]:
    """Ranks whose pseudo-gradient is absurdly long against the others', with the reason. Order does not matter.

    `norms` is `Surveyed.norm` by rank, of every update that passed the checks of its own. A norm over `NORM_FACTOR`
    times the median is absurd; the median is of the norms above 0, since clients that changed nothing say nothing about
    how far training goes, and needs 3 of them. A norm that overflowed is absurd in any company.
    """
    moved = [norm for norm in norms.values() if norm > 0]
    median = statistics.median(moved) if len(moved) >= MIN_COHORT_FOR_NORM else math.inf
    return {
        rank: Quarantine(QuarantineReason.NORM, _norm_message(norm, median, len(moved)))
        for rank, norm in norms.items()
        if norm > NORM_FACTOR * median or math.isinf(norm)
    }


def _norm_message(norm: float, median: float, moved: int) -> str:
    if math.isinf(norm):
        return "the update is so far from the base model that the distance overflows; look for a diverged training"
    return (
        f"the update moved the model by {norm:.4g}, {norm / median:.4g} times the median {median:.4g} of the {moved} "
        f"updates that moved it; up to {NORM_FACTOR:g} times is plausible. "
        "Look for a diverged training or wrong scaling"
    )


def _check_against_schema(schema: ModelSchema, name: str, array: np.ndarray) -> None:
    if name not in schema:
        raise SchemaMismatch(f"tensor {name!r} is not in the federation's schema of {len(schema)} tensors")
    spec = schema[name]
    if array.shape != spec.shape or array.dtype != spec.dtype.numpy:
        expected = f"{spec.dtype.name.lower()} {spec.shape}"
        raise SchemaMismatch(f"tensor {name!r} is {array.dtype} {array.shape}; the federation's is {expected}")
