"""Whether it matters in which language a client is written: federations of the MRI model's head, with four languages.

Four sites have a quarter of the scans each. In a federation of real processes over mutual TLS, all four clients are
Python's, or one is Python's and the others JavaScript's, Go's and C++'s; then each site is alone in a federation of its
own. What is scored is the whole model as the server exports it for Keras, on scans that no site has.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.options import Options
from benchmarks.scans import Scans, find_scans
from benchmarks.tables import Line, Table
from fedtask.brain_mri_head.backbone import file_digest
from fedtask.brain_mri_head.features import PLAIN, Features, read_features, write_features
from fedtask.division import divide
from tests.support.cpp import CPP
from tests.support.foreign import ForeignClient, start
from tests.support.go import GO
from tests.support.node import NODE
from tests.support.processes import Running, RunningServer, Stage, stage

_FOREIGN: Sequence[ForeignClient] = (NODE, GO, CPP)
_CLIENTS = 1 + len(_FOREIGN)
_DIVISION = "even"
_ROUNDS = 8
_PLAN = {"epochs": "5", "patience": "0", "learning_rate": "0.001"}
_FEDERATION_SECONDS = 900.0


class NoScoreError(Exception):
    """A federation did not come to its end; the message has what was said."""


@dataclass(frozen=True, slots=True)
class Head:
    """The task: its settings, the features of all images that sites divide, and what the coordinator scores on."""

    settings: Mapping[str, str]
    features: Features
    holdout: Path
    rounds: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracy of the exported model of each federation, 0 to 1; `alone` by site."""

    python: float
    mixed: float
    alone: Sequence[float]


def run(options: Options) -> Table:
    """Run all federations, or say which language is missing."""
    missing = "; ".join(reason for client in _FOREIGN if (reason := client.missing()))
    if missing:
        return Table("languages", [Line("skipped", {}, note=missing)])
    for client in _FOREIGN:
        client.build()
    with tempfile.TemporaryDirectory(prefix="languages-", dir=options.folder) as name:
        scans = find_scans(Path(name), {})
        head = _make_head(scans, Path(name), options.rounds or _ROUNDS)
        found = []
        for seed in range(options.num_seeds):
            found.append(measure(head, seed, Path(name) / str(seed)))
            options.say(f"seed {seed}: {found[-1]}")
    title = (
        f"languages: {scans.name}, {_CLIENTS} clients, {_DIVISION}, {head.rounds} rounds of {_PLAN['epochs']} epochs"
    )
    return Table(f"{title}, {options.num_seeds} seeds", _lines(found))


def _make_head(scans: Scans, folder: Path, rounds: int) -> Head:
    """Compute the features of all images once."""
    network = {"alpha": f"{scans.settings.alpha}", "image_size": f"{scans.settings.image_size}"}
    words = [word for key, value in network.items() for word in ("--task-set", f"{key}={value}")]
    command = ["features", "--data", str(scans.folder), "--out", str(folder / "all")]
    command += ["--backbone-weights", scans.backbone, *words]
    subprocess.run([sys.executable, "-m", "fedclient.cli", *command], check=True, stdout=subprocess.DEVNULL)
    backbone = {"backbone": scans.backbone}
    if Path(scans.backbone).is_file():
        backbone = {"backbone": file_digest(Path(scans.backbone)), "backbone_file": scans.backbone}
    return Head({**network, **backbone, **_PLAN}, read_features(folder / f"all{PLAIN}"), scans.folder / "val", rounds)


def measure(head: Head, seed: int, folder: Path) -> Scores:
    """Run the federations of one seed, which decides the division, the first weights and every order.

    Raises:
        NoScoreError: one did not come to its end.
    """
    folder.mkdir()
    train = head.features.train
    empty = train.take(np.zeros(len(train), bool))
    sites = []
    for number, shard in enumerate(divide(train.y, _CLIENTS, _DIVISION, seed)):
        sites.append(folder / f"site-{number}{PLAIN}")
        write_features(Features(train.take(shard), empty, head.features.meaning), sites[-1])
    python = _federation(head, seed, folder / "python", sites, [None] * _CLIENTS)
    mixed = _federation(head, seed, folder / "mixed", sites, [None, *_FOREIGN])
    alone = [_federation(head, seed, folder / f"alone-{number}", [site], [None]) for number, site in enumerate(sites)]
    return Scores(python, mixed, alone)


def _federation(
    head: Head, seed: int, folder: Path, sites: Sequence[Path], clients: Sequence[ForeignClient | None]
) -> float:
    """Run one to its end, where `None` is a client in Python; returns the accuracy of the model that it exports."""
    folder.mkdir()
    with stage(folder) as scene:
        options = ["--rounds", str(head.rounds), "--min-clients", str(len(sites)), "--seed", str(seed)]
        server = scene.server(*options, "--log-json", task="brain_mri_head", **head.settings)
        running = [
            _client(scene, server, f"site-{number}", data, client)
            for number, (data, client) in enumerate(zip(sites, clients, strict=True))
        ]
        for one in (*running, server):
            if status := one.wait(_FEDERATION_SECONDS):
                raise NoScoreError(f"{one.log.name} ended with status {status}:\n{one.text}")
    return _accuracy(head, server)


def _client(scene: Stage, server: RunningServer, name: str, data: Path, client: ForeignClient | None) -> Running:
    if client is not None:
        return start(scene, client, name, server.listening, data)
    return scene.client(name, server.listening, "--data", str(data))


def _accuracy(head: Head, server: RunningServer) -> float:
    """Of the exported Keras model, as anybody would score it."""
    model = server.out / "models" / "GLOBAL_MODEL.keras"
    settings = [word for key in ("alpha", "image_size") for word in ("--task-set", f"{key}={head.settings[key]}")]
    command = ["evaluate", str(model), "--holdout", str(head.holdout), *settings, "--json"]
    done = subprocess.run([sys.executable, "-m", "fedserver.cli", *command], check=True, capture_output=True, text=True)
    accuracy: float = json.loads(done.stdout)["metrics"]["accuracy"]
    return accuracy


def _lines(found: Sequence[Scores]) -> list[Line]:
    python, mixed = [one.python for one in found], [one.mixed for one in found]
    best, mean = [max(one.alone) for one in found], [statistics.fmean(one.alone) for one in found]
    named = {"four in Python": python, "four languages": mixed, "best site alone": best, "mean site alone": mean}
    return [
        Line(name, {"accuracy": f"{statistics.fmean(values):.4f}", **_by_seed(values)}, {"accuracy": values})
        for name, values in named.items()
    ]


def _by_seed(values: Sequence[float]) -> Mapping[str, str]:
    return {f"seed {seed}": f"{value:.4f}" for seed, value in enumerate(values)}
