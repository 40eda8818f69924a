"""The images that brain MRI is measured on: real scans where they are beside the checkout, the phantom elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedtask.brain_mri.backbone import RANDOM
from fedtask.brain_mri.phantom import write_phantom
from fedtask.brain_mri.settings import DEMO, BrainMriSettings, read_brain_mri_settings
from tests.support.brain_mri import find_shared_folder


@dataclass(frozen=True, slots=True)
class Scans:
    """A folder with `train/` and `val/`, where its network's weights come from, settings that suit both, and a name."""

    folder: Path
    backbone: str
    settings: BrainMriSettings
    name: str


def find_scans(temporary: Path, plan: Mapping[str, str]) -> Scans:
    """Real scans with ImageNet weights and the task's defaults; else a phantom, written to `temporary`, as in the demo.

    `plan` are the settings that a measurement asks for whatever it runs on.
    """
    shared = find_shared_folder()
    if shared is None:
        return _phantom(temporary, plan)
    settings = read_brain_mri_settings(plan)
    weights = f"mobilenet_v2_{settings.alpha:.2f}_{settings.image_size}_imagenet_no_top.weights.h5"
    return Scans(shared / "data" / "brain_mri", str(shared / "weights" / weights), settings, "real scans")


def _phantom(temporary: Path, plan: Mapping[str, str]) -> Scans:
    settings = read_brain_mri_settings({**DEMO.settings, **plan})
    return Scans(write_phantom_of(settings, temporary / "phantom"), RANDOM, settings, "the phantom")


def write_phantom_of(settings: BrainMriSettings, folder: Path) -> Path:
    """The phantom that settings describe, with a third as many images to score on as to train on."""
    num_train = settings.phantom_images
    difficulty, seed, size = settings.phantom_difficulty, settings.phantom_seed, settings.image_size
    return write_phantom(folder, num_train, num_train // 3, difficulty, seed, size)
