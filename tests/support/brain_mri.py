"""What the tests of the brain MRI task and of Keras tasks share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fedtask.task import EpochReport, Weights

SMALL = {"alpha": "0.35", "image_size": "64", "variants": "3", "phantom_images": "32"}
"""Settings of a network that is built in two seconds and trained in one."""


def ignore(_report: EpochReport) -> None:
    """A report nobody reads."""


def differing(one: Weights, other: Weights) -> list[str]:
    """Names of the tensors whose bytes differ."""
    return [name for name in one if np.asarray(one[name]).tobytes() != np.asarray(other[name]).tobytes()]


def shared_folder() -> Path:
    """The folder with real data and weights beside the checkout; skips the test where there is none."""
    folder = Path(os.environ.get("FEDSTREAM_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
    if not (folder / "data" / "brain_mri").is_dir():
        pytest.skip("no real images beside the checkout; name the folder that holds data/ in FEDSTREAM_SHARED")
    return folder
