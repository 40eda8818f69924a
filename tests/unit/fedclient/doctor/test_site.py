"""What the doctor says of a site's folder, for the task of images and for tasks that read other things."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.doctor.scene import Scene
from fedclient.doctor.site import class_folders, data
from fedstream.checkup.runner import Verdict, ok
from fedstream.schema import TaskMeaning
from fedtask.brain_mri.task import BrainMri
from fedtask.keras_task import KerasTask
from fedtask.task import SiteOptions, SiteSummary, Task
from tests.support.rights import closed, open_folder
from tests.support.tasks import Shapes


class Spots(KerasTask):
    """Reads `pictures.npz`, wherever in the folder other files and folders lie."""

    class_names = ("none", "spot")

    def load(self, folder: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        with np.load(folder / "pictures.npz") as file:
            return file["x"], file["y"]


class Loses(Spots):
    """Its author forgot to return what was loaded."""

    def load(self, folder: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        return None  # type: ignore[return-value]


class Forgets(Shapes):
    """Its author forgot to return the summary."""

    def open_site(self, options: SiteOptions) -> SiteSummary:
        return None  # type: ignore[return-value]


class Breaks(Shapes):
    """Its author looks for what is not there."""

    def open_site(self, options: SiteOptions) -> SiteSummary:
        return {}["split"]


class Ages(Shapes):
    """A regression: it has no classes, and counts all examples as one."""

    def meaning(self) -> TaskMeaning:
        return TaskMeaning((), "", "5 numbers")

    def open_site(self, options: SiteOptions) -> SiteSummary:
        return SiteSummary(10, {"train": {"all": 10}})


def scene_of(task: Task, folder: Path) -> Scene:
    config = ClientConfig(server="127.0.0.1:1", plaintext=True, data=folder)
    return Scene(config, Connection(config), task=task)


async def test_folder_of_a_task_without_class_folders_may_hold_folders_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "train" / "scripts").mkdir(parents=True)
    np.savez(tmp_path / "train" / "pictures.npz", x=np.zeros((20, 3)), y=np.arange(20) % 2)
    scene = scene_of(Spots({}), tmp_path)

    assert class_folders(scene) == ok("none: what is there is for the task to read")
    assert (await data(scene)).found.startswith("train 9 none, 9 spot; val 1 none, 1 spot")


async def test_data_of_a_task_without_classes_may_be_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "ages.csv").write_text("1,2,3,4,5,61")
    scene = scene_of(Ages({}), tmp_path / "ages.csv")

    assert class_folders(scene) == ok("none: what is there is for the task to read")
    assert (await data(scene)).verdict is Verdict.OK


def test_missing_folder_is_named_whatever_the_task_reads(tmp_path: Path) -> None:
    for task, kind in ((Spots({}), "file or folder"), (BrainMri({}), "folder")):
        result = class_folders(scene_of(task, tmp_path / "gone"))
        assert (result.verdict, result.found) == (Verdict.FAILED, f"there is no {kind} {tmp_path / 'gone'}")


@pytest.mark.parametrize(
    ("place", "mode"),
    [("", 0), ("site", 0), ("site/train", 0), ("site/train", 0o744), ("site/train/no", 0)],
)
async def test_folder_without_the_right_to_read_it_is_named_with_what_to_do(place: str, mode: int) -> None:
    with open_folder() as folder:
        for name in ("no", "yes"):
            (folder / "site" / "train" / name).mkdir(parents=True)
            Image.new("L", (8, 8), 90).save(folder / "site" / "train" / name / "scan.png")
        scene = scene_of(BrainMri({}), folder / "site")
        with closed(folder / place, mode):
            results = [class_folders(scene), await data(scene)]

    for result in results:
        assert result.verdict is Verdict.FAILED
        assert result.found.startswith(str(folder / place))
        assert "cannot be read (Permission denied); give the user that runs this the right" in result.found


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Loses({}), "train: load gave None; wanted inputs [n, ...] and labels [n], two arrays"),
        (Forgets({}), "open_site returned None; it must return a SiteSummary"),
        (Breaks({}), "the task raised KeyError: 'split' ("),
        (Spots({}), "the task raised FileNotFoundError: [Errno 2] No such file or directory: "),
    ],
)
async def test_mistake_in_a_task_of_ones_own_is_told_as_its_own_and_not_as_a_defect_of_the_check(
    tmp_path: Path, task: Task, words: str
) -> None:
    (tmp_path / "train").mkdir()
    result = await data(scene_of(task, tmp_path))

    assert result.verdict is Verdict.FAILED
    assert result.found.startswith(words)
    if "raised" in words:
        assert result.advice.startswith("Mend it in your task; ")


def test_folder_with_train_in_it_under_another_name_is_told_to_rename_it(tmp_path: Path) -> None:
    (tmp_path / "Train" / "no").mkdir(parents=True)
    result = class_folders(scene_of(BrainMri({}), tmp_path))

    assert result.verdict is Verdict.FAILED
    assert result.found.endswith("and found Train; rename Train to train")


async def test_data_has_a_note_per_finding_and_repeats_none_of_the_folders(tmp_path: Path) -> None:
    for name in ("no", "yes"):
        (tmp_path / "train" / name / "patient7").mkdir(parents=True)
        for number in range(4):
            scan = Image.linear_gradient("L").rotate(17 * number + 5 * len(name))
            scan.save(tmp_path / "train" / name / "patient7" / f"{number}.png")
    (tmp_path / "train" / "yes" / "notes.png").write_text("no image")
    (tmp_path / "train" / "yes" / "empty.png").write_text("")
    scene = scene_of(BrainMri({}), tmp_path)
    folders, examples = class_folders(scene), await data(scene)

    assert (folders.verdict, folders.found, folders.advice) == (
        Verdict.WARNING,
        f"10 files in {tmp_path / 'train'}",
        "",
    )
    assert [note.partition(" holds ")[2] for note in folders.notes] == [
        "4 files in 1 sub-folder, read as 'no' like the others",
        "4 files in 1 sub-folder, read as 'yes' like the others",
    ]
    assert examples.found.endswith("; 2 unusable files (1 empty, 1 not an image)")
    assert examples.advice == "Unusable files are left out"
    assert [note.partition(":")[0] for note in examples.notes] == [
        "1 file skipped, empty",
        "1 file skipped, not an image",
    ]


async def test_data_with_one_unusable_file_speaks_of_one(tmp_path: Path) -> None:
    for name in ("no", "yes"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.linear_gradient("L").rotate(45 * len(name)).save(tmp_path / "train" / name / "scan.png")
    (tmp_path / "train" / "no" / "empty.png").write_text("")
    result = await data(scene_of(BrainMri({}), tmp_path))

    assert "; 1 unusable file (1 empty)" in result.found
