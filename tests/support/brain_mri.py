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


def find_shared_folder() -> Path | None:
    """The folder with real data and weights, named in FEDSTREAM_SHARED or beside the checkout; `None` without one."""
    folder = Path(os.environ.get("FEDSTREAM_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
    return folder if (folder / "data" / "brain_mri").is_dir() else None


def shared_folder() -> Path:
    """That folder; skips the test where there is none."""
    folder = find_shared_folder()
    if folder is None:
        pytest.skip("no real images beside the checkout; name the folder that holds data/ in FEDSTREAM_SHARED")
    return folder
