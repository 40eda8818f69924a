"""What becomes of a fine-tune that does not go well: tried again, or failed with words that tell no site's secrets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedclient.training
from fedclient.config import ClientConfig
from fedclient.events import TaskOnOffer
from fedclient.training import Trainer, TrainingFailed
from fedstream.plan import Plan
from fedtask.messages import LocalUpdate
from fedtask.task import EpochReport, TaskError
from fedtask.worker import WorkerCrashed

PLAN = Plan(1, 32, 0.5, 0, seed=7)
CRASH = WorkerCrashed("killed by signal 9")
FOREVER = None


def update(num_examples: int) -> LocalUpdate:
    return LocalUpdate((), num_examples, {}, (), 1, 2.5)


class Worker:
    """Ends its fine-tunes as it is told to, one after another."""

    def __init__(self, ends: list[Any]) -> None:
        self.ends = ends

    async def fine_tune(self, *_given: Any) -> LocalUpdate:
        end = self.ends.pop(0)
        if end is FOREVER:
            await asyncio.Event().wait()
        if isinstance(end, Exception):
            raise end
        return end


@pytest.fixture
def fine_tune(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    async def begun(ends: list[Any], **settings: Any) -> LocalUpdate:
        monkeypatch.setattr(fedclient.training, "TaskWorker", lambda *_given: Worker(ends))
        given = {"server": "localhost:1", "plaintext": True, "name": "site", "data": "phantom", "out": tmp_path}
        trainer = Trainer(TaskOnOffer("federation", "linear", {}), ClientConfig.model_validate({**given, **settings}))
        return await trainer.fine_tune(tmp_path / "base", PLAN, tmp_path / "out", ignore)

    return begun


def ignore(_report: EpochReport) -> None:
    pass


@pytest.mark.parametrize("ends", [[update(9)], [CRASH, update(9)]], ids=["at once", "after one crash"])
async def test_fine_tune_that_ends_well_gives_its_update(fine_tune: Callable[..., Any], ends: list[Any]) -> None:
    assert await fine_tune(ends, max_examples=9) == update(9)
    assert ends == []


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ([CRASH, CRASH, update(9)], "the training process ended unexpectedly"),
        ([TaskError("/data/patients/7.png cannot be read"), update(9)], "local training failed"),
        ([update(10), update(9)], "the task used more examples than this site allows"),
        ([FOREVER, update(9)], "the site's limit on training time was reached"),
    ],
    ids=["two crashes", "task's error", "too many examples", "too long"],
)
async def test_fine_tune_that_fails_is_not_tried_again_and_tells_the_server_no_more_than_that(
    fine_tune: Callable[..., Any], ends: list[Any], told: str
) -> None:
    with pytest.raises(TrainingFailed) as failed:
        await fine_tune(ends, max_examples=9, max_hours=1e-5)
    assert str(failed.value) == told
    assert ends == [update(9)]
