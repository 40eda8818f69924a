"""fedtask.brain_mri.phantom: repeatable, labelled, and not given away by its brightness. Takes about 6 seconds."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedtask.brain_mri.phantom import VERSION, main, write_phantom
from fedtask.brain_mri.phantom_slice import draw_slice, smooth_noise
from fedtask.images.provenance import GENERATED
from fedtask.images.site import open_holdout, open_site
from fedtask.task import SiteOptions, TaskError

CLASSES = ("no", "yes")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_write_phantom_gives_a_labelled_folder_that_says_what_it_is(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path / "phantom", 7, 4, difficulty=0.25, seed=3, size=64)
    assert folder == tmp_path / "phantom"
    site = open_site(SiteOptions(folder), CLASSES, 64)
    assert site.summary.counts == {"train": {"no": 4, "yes": 3}, "val": {"no": 2, "yes": 2}}
    assert (site.summary.synthetic, site.summary.weaknesses, site.summary.warnings) == (True, (GENERATED,), ())
    assert open_holdout(folder / "val", {}, CLASSES, 64)[1].synthetic
    assert json.loads((folder / "PHANTOM.json").read_text("utf-8"))["recipe"] == {
        "version": VERSION,
        "seed": 3,
        "difficulty": 0.25,
        "num_train": 7,
        "num_val": 4,
        "size": 64,
    }
    with Image.open(site.train.paths[0]) as image:
        assert (image.mode, image.size) == ("L", (64, 64))


def test_write_phantom_twice_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        digests(write_phantom(tmp_path / name, 4, 2, seed=seed, size=48))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again
    assert not set(first.values()) & set(other.values())
    assert len(set(first.values())) == len(first) == 7


def test_write_phantom_that_is_there_is_left_alone(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path / "phantom", 4, 2, size=48)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_phantom(folder, 4, 2, size=48)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_write_phantom_of_another_recipe_replaces_it(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path / "phantom", 8, 2, size=48)
    write_phantom(folder, 2, 2, seed=5, size=48)
    assert digests(folder) == digests(write_phantom(tmp_path / "fresh", 2, 2, seed=5, size=48))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "phantom"]


def test_write_phantom_never_touches_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes(b"precious")
    with pytest.raises(TaskError, match="is not empty and holds no phantom"):
        write_phantom(tmp_path, 2, 2, size=48)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.png"]


def test_write_phantom_into_an_empty_folder_uses_it(tmp_path: Path) -> None:
    (tmp_path / "phantom").mkdir()
    assert len(digests(write_phantom(tmp_path / "phantom", 2, 2, size=48))) == 5


def test_write_phantom_at_the_same_time_gives_one_whole_phantom(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(write_phantom, tmp_path / "phantom", 6, 2, size=48) for _ in range(4)]
        assert {job.result() for job in jobs} == {tmp_path / "phantom"}
    assert digests(tmp_path / "phantom") == digests(write_phantom(tmp_path / "alone", 6, 2, size=48))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "phantom"]


@pytest.mark.parametrize(
    "settings", [{"difficulty": 1.1}, {"difficulty": float("nan")}, {"num_val": 1}, {"size": 8}, {"seed": -1}]
)
def test_write_phantom_setting_out_of_range_is_refused(tmp_path: Path, settings: dict[str, float]) -> None:
    with pytest.raises(TaskError, match="phantom"):
        write_phantom(tmp_path / "phantom", **{"num_train": 2, "num_val": 2, **settings})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_draw_slice_does_not_depend_on_how_many_are_drawn() -> None:
    alone = draw_slice((0, 0, 5), True, 0.0, 64)
    for index in range(5):
        draw_slice((0, 0, index), True, 0.0, 64)
    np.testing.assert_array_equal(draw_slice((0, 0, 5), True, 0.0, 64), alone)


def test_draw_slice_lesion_is_all_that_differs_before_exposure() -> None:
    """Away from the lesion a slice with and one without are alike up to one brightness."""
    without, with_lesion = (draw_slice((0, 0, 4), lesion, 0.0, 224).astype(float) for lesion in (False, True))
    inside = without > 30
    ratio = with_lesion[inside] / without[inside]
    typical = np.median(ratio)
    assert 0.5 < typical < 1.0
    changed = np.mean(np.abs(ratio / typical - 1.0) > 0.2)
    assert 0.03 < changed < 0.3


def test_draw_slice_brightness_alone_does_not_tell_the_classes_apart() -> None:
    slices = np.stack([draw_slice((0, 0, index), bool(index % 2), 0.0, 96) for index in range(400)])
    means, labels = slices.mean(axis=(1, 2)), np.arange(400) % 2
    best = max(np.mean((means > cut) == label) for cut in means for label in (labels, 1 - labels))
    assert best < 0.6  # 0.5 is chance; picking the best of 400 cuts adds some


def test_draw_slice_harder_lesion_changes_less() -> None:
    def change(difficulty: float) -> float:
        pairs = [
            [draw_slice((0, 0, index), lesion, difficulty, 96).astype(float) for lesion in (False, True)]
            for index in range(20)
        ]
        return float(np.mean([np.abs(with_lesion - without).mean() for without, with_lesion in pairs]))

    changes = [change(difficulty) for difficulty in (0.0, 0.5, 1.0)]
    assert changes == sorted(changes, reverse=True)


@pytest.mark.parametrize("cells", [2, 9, 40])
def test_smooth_noise_has_mean_0_and_variance_1_at_every_place(cells: int) -> None:
    rng = np.random.default_rng(0)
    planes = np.stack([smooth_noise(rng, cells, 32) for _ in range(2000)])
    assert planes.dtype == np.float32
    assert np.abs(planes.mean(axis=0)).max() < 0.12
    assert np.abs(planes.var(axis=0) - 1.0).max() < 0.2


def test_command_writes_the_phantom_and_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedtask.brain_mri.phantom", str(tmp_path / "phantom")]
    settings = ["--num-train", "2", "--num-val", "2", "--seed", "4", "--difficulty", "0.5", "--size", "48"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'phantom'}: a generated phantom, 2 train and 2 val images\n"
    assert digests(tmp_path / "phantom") == digests(write_phantom(tmp_path / "api", 2, 2, 0.5, 4, 48))


def test_command_failure_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scan.png").write_bytes(b"precious")
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not empty and holds no phantom")
