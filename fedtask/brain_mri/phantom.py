"""A generated MRI phantom: the data that stands in where there is none. Its slices look like MRI and are not.

    python -m fedtask.brain_mri.phantom FOLDER --num-train 600 --num-val 200

writes `train/<class>/*.png`, `val/<class>/*.png` and `PHANTOM.json`, by which every reader of the folder knows that it
is a phantom. Classes are `no` and `yes`, half each.

How hard it is, with 600 training and 200 validation images, seed 0, at the default difficulty 0 and at 0.3: a logistic
regression on each image's mean and standard deviation gets 0.75 and 0.65 of the validation images right (on the mean
alone 0.53 and 0.53), a four-layer network from random weights, 112 x 112, 10 epochs, 0.99 and 0.96. Lesions are the
brightest things in most slices, so a histogram tells much (0.97 and 0.91): the phantom shows that a federation learns,
and ranks no models.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from fedtask.brain_mri.phantom_slice import draw_slice
from fedtask.images.provenance import PHANTOM_MARKER
from fedtask.task import TaskError

CLASS_NAMES = ("no", "yes")
VERSION = 3
"""Raised with every change to the pictures, so that folders of an older version are made anew."""

DEFAULT_DIFFICULTY = 0.0
DEFAULT_SIZE = 224
_SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Everything a phantom depends on; what `PHANTOM.json` holds."""

    version: int
    seed: int
    difficulty: float
    num_train: int
    num_val: int
    size: int


def write_phantom(
    folder: Path,
    num_train: int,
    num_val: int,
    difficulty: float = DEFAULT_DIFFICULTY,
    seed: int = 0,
    size: int = DEFAULT_SIZE,
) -> Path:
    """Write the phantom into `folder`, and return it. Nothing is done if that very phantom is there already.

    The folder appears complete or not at all, so several processes may ask for the same one. A phantom of another
    recipe is replaced. `difficulty` runs from 0 (a plainly visible lesion) to 1 (a small, faint one in noise), both
    included; `size` is the side in pixels. Image `i` of a split depends on the seed, the split and `i` alone.

    Raises:
        TaskError: the folder holds something else, or a setting is out of range.
    """
    recipe = _Recipe(VERSION, seed, float(difficulty), num_train, num_val, size)
    _check(recipe)
    if _found(folder) == recipe:
        return folder
    if folder.exists() and _found(folder) is None and (not folder.is_dir() or any(folder.iterdir())):
        raise TaskError(f"{folder} is not empty and holds no phantom; name an empty folder for the phantom, or none")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        made = Path(temporary) / "phantom"
        _write(made, recipe)
        _move_into_place(made, folder, recipe)
    return folder


def _check(recipe: _Recipe) -> None:
    if not 0.0 <= recipe.difficulty <= 1.0:
        raise TaskError(f"the phantom's difficulty is a number from 0 to 1, not {recipe.difficulty}")
    if recipe.num_train < 2 or recipe.num_val < 2:
        raise TaskError("a phantom needs 2 or more images for train and for val: one of each class")
    if recipe.size < 32 or recipe.seed < 0:
        raise TaskError("a phantom's images have a side of 32 pixels or more, and its seed is 0 or above")


def _found(folder: Path) -> _Recipe | None:
    try:
        return _Recipe(**json.loads((folder / PHANTOM_MARKER).read_text("utf-8"))["recipe"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        return _Recipe(0, 0, 0.0, 0, 0, 0)  # a phantom, but of no recipe that is known here


def _write(folder: Path, recipe: _Recipe) -> None:
    for split in _SPLITS:
        for name in CLASS_NAMES:
            (folder / split / name).mkdir(parents=True)
    jobs = [("train", index) for index in range(recipe.num_train)] + [("val", index) for index in range(recipe.num_val)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda job: _write_slice(folder, recipe, *job), jobs):
            pass  # asking for the result raises what the thread raised
    note = "A generated phantom, not scans. Made by fedtask.brain_mri.phantom."
    text = json.dumps({"note": note, "recipe": asdict(recipe)}, indent=2)
    (folder / PHANTOM_MARKER).write_text(text + "\n", "utf-8")


def _write_slice(folder: Path, recipe: _Recipe, split: str, index: int) -> None:
    label = index % len(CLASS_NAMES)
    grey = draw_slice((recipe.seed, _SPLITS.index(split), index), bool(label), recipe.difficulty, recipe.size)
    # Level 1 writes four times as fast as the default and costs a few per cent of size: noise does not compress.
    Image.fromarray(grey).save(folder / split / CLASS_NAMES[label] / f"phantom_{index:05d}.png", compress_level=1)


def _move_into_place(made: Path, folder: Path, recipe: _Recipe) -> None:
    if _found(folder) not in (None, recipe):
        shutil.rmtree(folder)
    try:
        made.rename(folder)
    except OSError:
        if _found(folder) != recipe:  # else another process was quicker with the same phantom
            raise


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: write a phantom and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m fedtask.brain_mri.phantom", description="Write an MRI phantom.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-train", type=int, default=600, help="images in train/ (default: 600)")
    parser.add_argument("--num-val", type=int, default=200, help="images in val/ (default: 200)")
    parser.add_argument(
        "--difficulty", type=float, default=DEFAULT_DIFFICULTY, help="0 (plain) to 1 (hard) (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE, help="side in pixels (default: 224)")
    chosen = parser.parse_args(arguments)
    try:
        folder = write_phantom(
            chosen.folder, chosen.num_train, chosen.num_val, chosen.difficulty, chosen.seed, chosen.size
        )
    except TaskError as error:
        parser.exit(1, f"error: {error}\n")
    sys.stdout.write(f"{folder}: a generated phantom, {chosen.num_train} train and {chosen.num_val} val images\n")


if __name__ == "__main__":
    main()
