"""A federation on brain MRI in one process, without a network: to compare settings of the task, quickly.

    python benchmarks/simulate_brain_mri.py --data DIR --backbone-weights FILE --seed 0 --set fine_tune=head
    python benchmarks/simulate_brain_mri.py --demo

Sites train one after the other; the updates are averaged by examples in float64; the global model is scored on
`DIR/val` after every round. The last line is JSON. The figures of docs/adr/0004 were made with it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedstream.plan import Plan
from fedstream.schema import ModelSchema
from fedtask.brain_mri.backbone import RANDOM, initial_weights
from fedtask.brain_mri.phantom import write_phantom
from fedtask.brain_mri.settings import DEMO, BrainMriSettings, read_brain_mri_settings
from fedtask.brain_mri.training import Training
from fedtask.images.site import Site, open_holdout, open_site
from fedtask.metrics import binary_evaluation
from fedtask.task import EpochReport, FineTuned, SiteOptions, Weights


def main() -> None:
    """Run the federation that the command line asks for."""
    args = _arguments()
    settings = read_brain_mri_settings({**(DEMO.settings if args.demo else {}), **dict(args.set)})
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.data or write_phantom(
            Path(temporary) / "phantom",
            settings.phantom_images,
            settings.phantom_images // 3,
            settings.phantom_difficulty,
            settings.phantom_seed,
            settings.image_size,
        )
        curve = run(settings, folder, args, args.cache or Path(temporary) / "cache")
    best = max(curve, key=lambda scores: scores["accuracy"] or 0.0)
    seconds = round(time.monotonic() - started)
    print(json.dumps({"set": dict(args.set), "seed": args.seed, "best": best, "last": curve[-1], "seconds": seconds}))


def run(settings: BrainMriSettings, folder: Path, args: argparse.Namespace, cache: Path) -> list[Mapping[str, float]]:
    """Run all rounds; gives accuracy and loss of the global model on the holdout after each."""
    training = Training(settings)
    sites = [
        open_site(
            SiteOptions(folder, {}, shard, args.clients, args.division, args.seed),
            settings.class_names,
            settings.image_size,
            args.seed,
        )
        for shard in range(args.clients)
    ]
    print("sites:", *(dict(site.summary.counts["train"]) for site in sites))
    holdout, _ = open_holdout(folder / "val", {}, settings.class_names, settings.image_size)
    weights = initial_weights(settings, args.seed, args.backbone_weights)
    curve: list[Mapping[str, float]] = []
    started = time.monotonic()
    for number in range(1, args.rounds + 1):
        updates = [_fine_tune(training, site, weights, _plan(settings, args.seed, number, shard), cache)
                   for shard, site in enumerate(sites)]  # fmt: skip
        weights = average(training.network.schema, weights, updates)
        scored = binary_evaluation(holdout.labels, training.predict(holdout, weights), settings.class_names, "yes")
        curve.append({name: round(scored.metrics[name] or 0.0, 4) for name in ("accuracy", "loss")})
        epochs = [len(update.history) for update in updates]
        local = [f"{update.metrics['val_accuracy'] or 0:.2f}" for update in updates]
        seconds = time.monotonic() - started
        print(f"round {number:2} {curve[-1]} epochs {epochs} local {local} {seconds:.0f} s", flush=True)
    return curve


def average(schema: ModelSchema, base: Weights, updates: Sequence[FineTuned]) -> Weights:
    """Mean by examples, in float64, of what moves."""
    total = sum(update.num_examples for update in updates)
    averaged = dict(base)
    for spec in schema:
        if spec.trainable:
            parts = (update.num_examples / total * update.weights[spec.name].astype(np.float64) for update in updates)
            averaged[spec.name] = sum(parts, np.zeros(spec.shape)).astype(spec.dtype.numpy)
    return averaged


def _fine_tune(training: Training, site: Site, weights: Weights, plan: Plan, cache: Path) -> FineTuned:
    def ignore(_report: EpochReport) -> None:
        pass

    return training.fine_tune(site, weights, plan, ignore, cache)


def _plan(settings: BrainMriSettings, seed: int, number: int, shard: int) -> Plan:
    plan = Plan(settings.epochs, settings.batch_size, settings.learning_rate, settings.patience, seed=0)
    return replace(plan, seed=seed * 1_000_000 + number * 1000 + shard)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/ and val/; without it, a phantom")
    parser.add_argument("--backbone-weights", default=RANDOM)
    parser.add_argument("--demo", action="store_true", help="the preset of make demo")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--division", default="dirichlet:0.5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cache", type=Path, help="keep activations here, for the next run")
    parser.add_argument("--set", action="append", default=[], type=_pair, metavar="NAME=VALUE")
    return parser.parse_args()


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


if __name__ == "__main__":
    main()
