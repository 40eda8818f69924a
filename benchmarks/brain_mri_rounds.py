"""Rounds of brain MRI in one process, without a network: sites train one after the other, and the mean is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedstream.plan import Plan
from fedstream.schema import ModelSchema
from fedtask.brain_mri.settings import BrainMriSettings
from fedtask.brain_mri.training import Training
from fedtask.images.image_set import ImageSet
from fedtask.images.site import Site, open_holdout, open_site
from fedtask.metrics import binary_evaluation
from fedtask.task import EpochReport, FineTuned, SiteOptions, Weights

Carry = Callable[[int, Weights, FineTuned], FineTuned]
"""Brings an update from a site, by number, to the server; given with the weights that it started from."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """Sites that divide one folder's `train/`, and its `val/`, which no site sees. `seed` decides the division and all
    that is drawn in training."""

    settings: BrainMriSettings
    sites: Sequence[Site]
    holdout: ImageSet
    seed: int


@dataclass(frozen=True, slots=True)
class Played:
    """A round: the new weights, their scores on the holdout, and the updates they are the mean of."""

    weights: Weights
    scores: Mapping[str, float]
    updates: Sequence[FineTuned]


def gather(settings: BrainMriSettings, folder: Path, clients: int, division: str, seed: int) -> Cohort:
    """Open every site's part of the folder, and the holdout."""
    names, size = settings.class_names, settings.image_size
    options = [SiteOptions(folder, {}, shard, clients, division, seed) for shard in range(clients)]
    sites = [open_site(option, names, size, seed) for option in options]
    return Cohort(settings, sites, open_holdout(folder / "val", {}, names, size)[0], seed)


def as_it_is(_site: int, _base: Weights, update: FineTuned) -> FineTuned:
    """A way on which nothing happens to an update."""
    return update


def play(
    training: Training, cohort: Cohort, weights: Weights, number: int, cache: Path | None, carry: Carry = as_it_is
) -> Played:
    """Play round `number` from these weights. Features are kept in `cache`, or in memory."""
    updates = [
        carry(at, weights, training.fine_tune(site, weights, _plan(cohort, number, at), _ignore, cache))
        for at, site in enumerate(cohort.sites)
    ]
    averaged = average(training.network.schema, weights, updates)
    probabilities = training.predict(cohort.holdout, averaged)
    scored = binary_evaluation(cohort.holdout.labels, probabilities, cohort.settings.class_names, "yes")
    scores = {name: round(scored.metrics[name] or 0.0, 4) for name in ("accuracy", "loss")}
    return Played(averaged, scores, updates)


def average(schema: ModelSchema, base: Weights, updates: Sequence[FineTuned]) -> Weights:
    """Mean by examples, in float64, of what moves."""
    total = sum(update.num_examples for update in updates)
    averaged = dict(base)
    for spec in schema:
        if spec.trainable:
            parts = (update.num_examples / total * update.weights[spec.name].astype(np.float64) for update in updates)
            averaged[spec.name] = sum(parts, np.zeros(spec.shape)).astype(spec.dtype.numpy)
    return averaged


def _ignore(_report: EpochReport) -> None:
    """Nobody watches."""


def _plan(cohort: Cohort, number: int, site: int) -> Plan:
    chosen = cohort.settings
    plan = Plan(chosen.epochs, chosen.batch_size, chosen.learning_rate, chosen.patience, seed=0)
    return replace(plan, seed=cohort.seed * 1_000_000 + number * 1000 + site)
