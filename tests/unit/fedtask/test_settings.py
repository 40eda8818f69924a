"""Settings of a task as they stand on a command line."""

from __future__ import annotations

import pytest
import typer

from fedserver.cli_words import task_settings
from fedtask.settings import read_pairs

pytestmark = pytest.mark.numpy_task


def test_settings_of_the_command_line_may_hold_commas_and_equals_signs() -> None:
    words = ["classes=healthy,ill", " alpha = 0.35 ", "backbone=sha256:ab=="]
    assert read_pairs(words) == {"classes": "healthy,ill", "alpha": "0.35", "backbone": "sha256:ab=="}
    assert task_settings(words) == read_pairs(words)
    assert task_settings(None) == {}


@pytest.mark.parametrize("word", ["", "alpha", "=0.35", " =0.35"])
def test_word_that_is_no_setting_is_refused_with_what_one_is(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"--task-set takes NAME=VALUE"):
        read_pairs([word])
    with pytest.raises(typer.Exit):
        task_settings([word])
    assert f"not {word!r}" in capsys.readouterr().err
