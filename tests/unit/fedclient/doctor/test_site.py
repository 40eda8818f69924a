"""What the doctor says of a site's folder, for the task of images and for tasks that read other things."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.doctor.scene import Scene
from fedclient.doctor.site import class_folders, data
from fedstream.checkup.runner import Verdict, ok
from fedstream.schema import TaskMeaning
from fedtask.brain_mri.task import BrainMri
from fedtask.keras_task import KerasTask
from fedtask.task import SiteOptions, SiteSummary, Task
from tests.support.tasks import Shapes


class Spots(KerasTask):
    """Reads `pictures.npz`, wherever in the folder other files and folders lie."""

    class_names = ("none", "spot")

    def load(self, folder: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        with np.load(folder / "pictures.npz") as file:
            return file["x"], file["y"]


class Ages(Shapes):
    """A regression: it has no classes, and counts all examples as one."""

    def meaning(self) -> TaskMeaning:
        return TaskMeaning((), "", "5 numbers")

    def open_site(self, options: SiteOptions) -> SiteSummary:
        return SiteSummary(10, {"train": {"all": 10}})


def scene_of(task: Task, folder: Path, classes: Mapping[str, str] | None = None) -> Scene:
    config = ClientConfig(server="127.0.0.1:1", plaintext=True, data=folder, classes=classes or {})
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
    for task in (Spots({}), BrainMri({})):
        result = class_folders(scene_of(task, tmp_path / "gone"))
        assert (result.verdict, result.found) == (Verdict.FAILED, f"there is no folder {tmp_path / 'gone'}")
