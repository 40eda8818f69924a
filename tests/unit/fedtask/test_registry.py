"""Finding tasks by name. Takes about a second, for one fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedtask.linear import Linear
from fedtask.registry import create_task, task_references
from fedtask.task import TaskError

pytestmark = pytest.mark.numpy_task


def test_built_in_name_makes_its_task_with_settings():
    task = create_task("linear", {"features": "3"})
    assert isinstance(task, Linear)
    assert task.schema()["weights"].shape == (3,)


def test_module_and_class_makes_that_class():
    assert isinstance(create_task("fedtask.linear:Linear", {}), Linear)


def test_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(
        TaskError, match=r"no task 'linaer'; known are brain_mri, brain_mri_head, linear, and module:Class"
    ):
        create_task("linaer", {})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:Task", "importing no_such_module failed: ModuleNotFoundError"),
        ("fedtask.linear:Missing", "module fedtask.linear has no class 'Missing'"),
        ("fedtask.linear:LinearSettings", "class LinearSettings lacks default_plan, evaluate, export, fine_tune"),
    ],
)
def test_reference_that_leads_to_no_task_says_why(reference, message):
    with pytest.raises(TaskError, match=message):
        create_task(reference, {})


def test_class_in_the_current_folder_is_found_without_installing_it(tmp_path, monkeypatch):
    (tmp_path / "task_of_here.py").write_text("from fedtask.linear import Linear\n", "utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(TaskError, match="start in the folder where its file is, or install it"):
        create_task("task_of_here:Linear", {})
    monkeypatch.chdir(tmp_path)
    assert isinstance(create_task("task_of_here:Linear", {}), Linear)


def test_module_that_fails_while_it_is_imported_says_how(tmp_path, monkeypatch):
    (tmp_path / "broken_task.py").write_text("1 / 0\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match="importing broken_task failed: ZeroDivisionError"):
        create_task("broken_task:Task", {})


def test_listing_and_a_numpy_task_import_no_tensorflow():
    code = (
        "import sys; from fedtask.registry import *; task_references(); create_task('linear', {});"
        "create_task('brain_mri', {}).meaning();"
        "print([name for name in ('tensorflow', 'keras', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(task_references()) >= {"brain_mri", "brain_mri_head", "linear"}
