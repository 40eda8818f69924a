"""The server's own worker: there while it is needed. 3 s, of real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedserver.evaluation import Evaluator
from tests.support.this_process import children

pytestmark = pytest.mark.numpy_task

TASK = "tests.support.tasks:Shapes"


async def test_worker_without_a_holdout_ends_when_the_model_is_made_and_comes_back_for_the_end(tmp_path: Path) -> None:
    evaluator, before = Evaluator(TASK, {}, None, {}), children()
    await evaluator.describe()
    assert await evaluator.open() is None
    await evaluator.initial_model(0, None, None, tmp_path / "initial.safetensors")
    assert children() == before + 1
    await evaluator.rest()
    assert children() == before
    assert await evaluator.evaluate(tmp_path / "initial.safetensors") is None
    assert children() == before
    assert await evaluator.export(tmp_path / "initial.safetensors", tmp_path / "models", "GLOBAL") == []
    assert children() == before + 1
    await evaluator.close()
    assert children() == before


async def test_worker_with_a_holdout_is_kept_warm(tmp_path: Path) -> None:
    evaluator, before = Evaluator(TASK, {}, "phantom", {}), children()
    await evaluator.initial_model(0, None, None, tmp_path / "initial.safetensors")
    assert await evaluator.open() is not None
    assert children() == before + 1
    assert await evaluator.evaluate(tmp_path / "initial.safetensors") is not None
    await evaluator.close()
