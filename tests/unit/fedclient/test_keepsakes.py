"""What is kept for people: never in the way of a round, and up to date in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from structlog.testing import capture_logs

from fedclient import keepsakes
from fedclient.keepsakes import Keepsakes
from fedclient.memory import Row
from fedclient.models import LocalModel
from fedclient.training import Trainer
from fedclient.updates import FinishedUpdate
from fedstream.manifest import Manifest
from fedtask.messages import LocalUpdate

NEVER = 3600.0
UPDATE = LocalUpdate((), 1, {}, (), 1, 1.0)


@dataclass
class FakeTrainer:
    """Notes what it is asked to save. With `stuck`, saving a model never ends."""

    tables: list[int] = field(default_factory=list)
    pictures: list[tuple[int, bool]] = field(default_factory=list)
    models: list[tuple[str, str]] = field(default_factory=list)
    said_of: list[object] = field(default_factory=list)
    full: bool = False
    stuck: bool = False

    def save_history(self, rows: Sequence[Row]) -> None:
        if self.full:
            raise OSError("no space")
        self.tables.append(len(rows))

    async def draw_history(self, *, hurry: bool) -> None:
        self.pictures.append((self.tables[-1], hurry))

    async def save_model(self, base: Path, changes: Path) -> None:
        if self.stuck:
            await asyncio.sleep(NEVER)
        self.models.append((base.name, changes.name))
        self.said_of.append(structlog.contextvars.get_contextvars().get("round"))

    async def close(self) -> None:
        self.stuck = False


def made(trainer: FakeTrainer, pause_seconds: float = NEVER) -> Keepsakes:
    return Keepsakes(cast(Trainer, trainer), pause_seconds, pause_seconds)


async def train(kept: Keepsakes, number: int) -> None:
    """Round `number` as far as the keepsakes notice: an offer, a fine-tune."""
    kept.work_begins()
    base = LocalModel(Path(f"base-{number}"), Manifest(()))
    finished = FinishedUpdate(f"offer-{number}", number, base.digest, Path(f"update-{number}"), UPDATE)
    rows: list[Row] = [{"round": number}] * number
    await kept.trained(base, finished, rows)
    await settle()


async def deliver(kept: Keepsakes) -> None:
    kept.work_ends()
    await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_log_of_a_saved_model_names_the_round_in_which_it_was_trained() -> None:
    trainer = FakeTrainer()
    kept = Keepsakes(cast(Trainer, trainer), NEVER, 0.1)  # so that the second is saved by the first one's errand
    for number in (1, 2):
        with structlog.contextvars.bound_contextvars(round=number):
            await train(kept, number)
            await deliver(kept)
    await asyncio.sleep(0.2)
    await kept.close()
    assert trainer.said_of == [1, 2]


async def test_model_is_saved_after_delivery_and_not_before() -> None:
    trainer = FakeTrainer()
    kept = made(trainer)
    await train(kept, 1)
    assert (trainer.tables, trainer.pictures, trainer.models) == ([1], [], [])
    assert (kept.offers, len(kept.bases)) == (["offer-1"], 1)
    await deliver(kept)

    assert trainer.models == [("base-1", "update-1")]
    assert (kept.offers, kept.bases) == ([], [])
    await kept.close()


async def test_rounds_in_quick_succession_write_every_table_but_one_model_and_no_picture_before_the_end() -> None:
    trainer = FakeTrainer()
    kept = made(trainer)
    for number in (1, 2, 3, 4):
        await train(kept, number)
        await deliver(kept)
    assert (trainer.tables, trainer.pictures) == ([1, 2, 3, 4], [])
    assert trainer.models == [("base-1", "update-1")]
    assert kept.offers == ["offer-4"]
    await kept.finish()

    assert trainer.pictures == [(4, True)]
    assert trainer.models == [("base-1", "update-1"), ("base-4", "update-4")]
    assert kept.offers == []


async def test_without_pictures_the_history_is_a_table_to_the_end() -> None:
    trainer = FakeTrainer()
    kept = Keepsakes(cast(Trainer, trainer), 0.0, pictures=False)
    await train(kept, 1)
    await deliver(kept)
    await kept.finish()
    assert (trainer.tables, trainer.pictures, trainer.models) == ([1], [], [("base-1", "update-1")])


async def test_rounds_that_come_when_the_pause_is_over_have_a_picture_each() -> None:
    trainer = FakeTrainer()
    kept = made(trainer, 0.0)
    for number in (1, 2):
        await train(kept, number)
        await deliver(kept)
    assert trainer.pictures == [(1, False), (2, False)]
    await kept.close()


async def test_model_put_off_by_the_next_offer_is_saved_when_that_is_over() -> None:
    trainer = FakeTrainer()
    kept = made(trainer, 0.0)
    await train(kept, 1)
    kept.work_ends()
    kept.work_begins()  # the next offer is there already
    await settle()
    assert (trainer.models, kept.offers) == ([], ["offer-1"])
    await deliver(kept)

    assert trainer.models == [("base-1", "update-1")]


async def test_close_in_the_middle_of_a_round_saves_what_was_trained() -> None:
    trainer = FakeTrainer()
    kept = made(trainer)
    await train(kept, 1)
    await kept.close()
    await kept.close()

    assert (trainer.pictures, trainer.models) == ([(1, True)], [("base-1", "update-1")])


async def test_close_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepsakes, "_LAST_SECONDS", 0.1)
    trainer = FakeTrainer(stuck=True)
    kept = made(trainer)
    await train(kept, 1)
    with capture_logs() as logs:
        await asyncio.wait_for(kept.close(), 5)

    assert [entry["event"] for entry in logs] == ["the last model or plot is not saved: it takes too long"]


async def test_table_that_cannot_be_written_is_told_and_costs_nothing_else() -> None:
    trainer: Any = FakeTrainer(full=True)
    kept = made(trainer)
    with capture_logs() as logs:
        await train(kept, 1)
        await deliver(kept)

    assert [entry["because"] for entry in logs] == ["no space"]
    assert (trainer.pictures, trainer.models) == ([], [("base-1", "update-1")])
    await kept.close()
