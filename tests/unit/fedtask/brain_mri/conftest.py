"""A small network on a small phantom, shared by the tests of this folder: made once, in about five seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtask.brain_mri.phantom import write_phantom
from fedtask.brain_mri.task import BrainMri
from fedtask.task import SiteOptions
from tests.support.brain_mri import SMALL


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", num_train=40, num_val=12, size=64)


@pytest.fixture(scope="session")
def upper_task(phantom, tmp_path_factory) -> BrainMri:
    """A task that fine-tunes the upper part, with its site and holdout open."""
    task = BrainMri(SMALL)
    task.open_site(SiteOptions(phantom, cache_folder=tmp_path_factory.mktemp("cache")))
    task.open_holdout(phantom / "val", {})
    return task
