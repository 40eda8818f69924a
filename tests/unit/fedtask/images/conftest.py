"""Folders of small pictures that are unlike each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Pictures = Callable[[Path, int, int], list[Path]]


def picture(seed: int, side: int = 48) -> Image.Image:
    """A smooth colour picture; those of different seeds are no near-duplicates."""
    grid = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def write_pictures() -> Pictures:
    """Writes `count` pictures from `first_seed` on into a folder, as PNG."""

    def write(folder: Path, count: int, first_seed: int) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{first_seed + index:04d}.png" for index in range(count)]
        for index, path in enumerate(paths):
            picture(first_seed + index).save(path)
        return paths

    return write


@pytest.fixture
def make_site(tmp_path: Path, write_pictures: Pictures) -> Callable[[Mapping[str, int]], Path]:
    """Makes a site's folder with so many pictures in each `split/class`, and returns it."""

    def make(counts: Mapping[str, int]) -> Path:
        for place, (folder, count) in enumerate(counts.items()):
            write_pictures(tmp_path / "site" / folder, count, 1000 * place)
        return tmp_path / "site"

    return make


@pytest.fixture
def brain_mri_folder() -> Path:
    """The real slices, beside the checkout or where FEDSTREAM_SHARED says."""
    beside = Path(__file__).resolve().parents[4].parent / "shared"
    folder = Path(os.environ.get("FEDSTREAM_SHARED", beside)) / "data" / "brain_mri"
    if not folder.is_dir():
        pytest.skip("the real slices (shared/data/brain_mri) are not beside the checkout, nor in FEDSTREAM_SHARED")
    return folder
