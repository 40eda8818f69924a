"""A federation on brain MRI in one process, without a network: to compare settings of the task, quickly.

    python -m benchmarks.simulate_brain_mri --data DIR --backbone-weights FILE --seed 0 --set fine_tune=head
    python -m benchmarks.simulate_brain_mri --demo

Sites train one after the other; the updates are averaged by examples in float64; the global model is scored on
`DIR/val` after every round. The last line is JSON. The figures of docs/adr/0004 were made with it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.brain_mri_rounds import gather, play
from benchmarks.scans import write_phantom_of
from fedtask.brain_mri.backbone import RANDOM, initial_weights
from fedtask.brain_mri.settings import DEMO, BrainMriSettings, read_brain_mri_settings
from fedtask.brain_mri.training import Training


def main() -> None:
    """Run the federation that the command line asks for."""
    args = _arguments()
    settings = read_brain_mri_settings({**(DEMO.settings if args.demo else {}), **dict(args.set)})
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.data or write_phantom_of(settings, Path(temporary) / "phantom")
        curve = run(settings, folder, args, args.cache or Path(temporary) / "cache")
    best = max(curve, key=lambda scores: scores["accuracy"] or 0.0)
    seconds = round(time.monotonic() - started)
    print(json.dumps({"set": dict(args.set), "seed": args.seed, "best": best, "last": curve[-1], "seconds": seconds}))


def run(settings: BrainMriSettings, folder: Path, args: argparse.Namespace, cache: Path) -> list[Mapping[str, float]]:
    """Run all rounds; gives accuracy and loss of the global model on the holdout after each."""
    training = Training(settings)
    cohort = gather(settings, folder, args.clients, args.division, args.seed)
    print("sites:", *(dict(site.summary.counts["train"]) for site in cohort.sites))
    weights = initial_weights(settings, args.seed, args.backbone_weights)
    curve: list[Mapping[str, float]] = []
    started = time.monotonic()
    for number in range(1, args.rounds + 1):
        played = play(training, cohort, weights, number, cache)
        weights = played.weights
        curve.append(played.scores)
        epochs = [len(update.history) for update in played.updates]
        local = [f"{update.metrics['val_accuracy'] or 0:.2f}" for update in played.updates]
        seconds = time.monotonic() - started
        print(f"round {number:2} {curve[-1]} epochs {epochs} local {local} {seconds:.0f} s", flush=True)
    return curve


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
