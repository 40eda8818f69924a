"""Settings of the brain MRI task. Takes a second, without tensorflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedstream.plan import Plan
from fedstream.schema import TaskMeaning
from fedtask.brain_mri.settings import DEMO, BrainMriSettings, read_brain_mri_settings
from fedtask.brain_mri.task import BrainMri
from fedtask.settings import describe_settings

DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "brain_mri.md"


def test_default_settings_are_those_users_know():
    task = BrainMri({})
    assert task.meaning() == TaskMeaning(("no", "yes"), "yes", "rgb 224x224 bilinear; x / 127.5 - 1")
    plan = task.default_plan()
    assert plan == Plan(epochs=10, batch_size=32, learning_rate=1e-4, early_stopping_patience=2, seed=0)


def test_meaning_follows_the_settings_so_that_sites_that_differ_are_told_apart():
    task = BrainMri({"classes": "healthy,tumour", "positive_class": "tumour", "image_size": "96"})
    assert task.meaning() == TaskMeaning(("healthy", "tumour"), "tumour", "rgb 96x96 bilinear; x / 127.5 - 1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fine_tune": "block_12_expand"}, "setting fine_tune .* is head or upper or all or block_1_project_BN or"),
        ({"alpha": "0"}, r"setting alpha \(width of MobileNetV2\) is 0.1 to 2, not '0'"),
        ({"classes": "no,yes,maybe"}, "two different names"),
        ({"classes": "a,b"}, "positive_class is one of the classes a, b, not 'yes'"),
        ({"lerning_rate": "1"}, "unknown setting 'lerning_rate'; known are classes, positive_class, alpha"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        BrainMri(settings)


def test_every_setting_is_documented():
    undocumented = [info.name for info in describe_settings(BrainMriSettings) if len(info.meaning) < 5]
    assert undocumented == []


def test_preset_of_the_demonstration_is_made_of_valid_settings():
    assert read_brain_mri_settings(DEMO.settings).batch_norm in {"frozen", "train"}


def test_table_of_the_document_is_that_of_the_code():
    rows = ["| setting | default | allowed | what it is |", "|---|---|---|---|"]
    for info in describe_settings(BrainMriSettings):
        allowed = info.allowed()
        if info.name == "fine_tune":
            allowed = "head, upper, all, or the end of a block, such as block_14_add or block_13_project_BN"
        rows.append(f"| `{info.name}` | {info.default} | {allowed} | {info.meaning} |")
    expected = "\n".join(rows)
    assert expected in DOCUMENT.read_text("utf-8"), f"{DOCUMENT.name} should have:\n{expected}"
