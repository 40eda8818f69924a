"""Features files for tests: two clouds of points, in both forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedtask.brain_mri_head.features import Features, Labelled, write_features
from fedtask.brain_mri_head.settings import read_head_settings

WIDTH = 6
SETTINGS = {
    "backbone": "none",
    "features": str(WIDTH),
    "learning_rate": "0.1",
    "batch_size": "8",
    "epochs": "4",
    "patience": "0",
}
"""Of a head that learns the clouds in a few epochs."""


def clouds(num: int, seed: int, distance: float = 1.0) -> Labelled:
    """Examples of both labels, by turns, whose clouds overlap a little, and with less `distance` more."""
    generator = np.random.default_rng(seed)
    y = np.arange(num) % 2
    x = generator.standard_normal((num, WIDTH)) + np.outer(2 * y - 1, np.full(WIDTH, distance))
    return Labelled(x.astype(np.float32), y.astype(np.int64))


def site_features(seed: int, num_train: int = 60, num_val: int = 14, distance: float = 1.0) -> Features:
    """A site's examples for a federation of `SETTINGS`."""
    every = clouds(num_train + num_val, seed, distance)
    chosen = np.arange(num_train + num_val) < num_train
    meaning = read_head_settings(SETTINGS).meaning().canonical_bytes()
    return Features(every.take(chosen), every.take(~chosen), meaning)


def write_site(folder: Path, seed: int, num_train: int = 60, distance: float = 1.0) -> Path:
    """`folder/site_SEED.features`."""
    path = folder / f"site_{seed}.features"
    write_features(site_features(seed, num_train, distance=distance), path)
    return path


def write_wide_site(folder: Path, width: int, settings: dict[str, str]) -> Path:
    """`folder/wide.features`: three examples of so many features that an update takes a while to travel."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((3, width)).astype(np.float32), np.array([0, 1, 1])
    meaning = read_head_settings(settings).meaning().canonical_bytes()
    path = folder / "wide.features"
    every = Labelled(x, y)
    write_features(Features(every, every.take(y > 1), meaning), path)
    return path
