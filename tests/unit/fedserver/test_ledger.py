"""What a round's entry in the ledger says of the settings it was run with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedserver.config import ServerConfig
from fedserver.ledger import configuration_sha256
from fedserver.store.ledger import CommonPlan, ledger
from tests.support.bench import SCHEMA, Bench
from tests.support.tasks import random_weights

SETTINGS: dict[str, Any] = {"task": "linear", "rounds": 3}


@pytest.mark.parametrize(
    "of_this_machine",
    [
        {"listen": "127.0.0.1:9999"},
        {"enrol_listen": "127.0.0.1:9999"},
        {"metrics_listen": "127.0.0.1:9999"},
        {"advertise": ["fl.example.org"]},
        {"state": Path("elsewhere")},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_the_machine_are_no_part_of_the_digest(of_this_machine: dict[str, Any]) -> None:
    assert configuration_sha256(ServerConfig(**SETTINGS, **of_this_machine)) == configuration_sha256(
        ServerConfig(**SETTINGS)
    )


def test_settings_of_the_federation_are_part_of_the_digest() -> None:
    assert configuration_sha256(ServerConfig(**{**SETTINGS, "rounds": 4})) != configuration_sha256(
        ServerConfig(**SETTINGS)
    )


@pytest.mark.numpy_task
async def test_entry_has_the_plan_that_was_offered_also_where_the_next_start_has_another(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a", plan={"learning_rate": 0.5, "epochs": 3}) as bench:
        (await bench.open_round()).cancel()
    async with Bench.running(tmp_path, "a", plan={"learning_rate": 0.25}) as bench:
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 1))
        await bench.end_round(running)
        await bench.play(2)
        plans = [row.entry().plan for row in ledger(bench.state.database)]
    assert plans == [CommonPlan(3, 1, 0.5, 0, {}), CommonPlan(1, 1, 0.25, 0, {})]
