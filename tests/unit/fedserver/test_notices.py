"""Notices to idle clients: of a state at once, of a reason once in a while. A moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fedserver.coordinator.effects import TellWaiting
from fedserver.federation import FederationState
from fedserver.notices import Notices
from tests.support.bench import Bench

pytestmark = pytest.mark.numpy_task

SECONDS = 0.05


async def test_notices_of_many_reasons_are_one_and_of_a_state_are_not_put_off() -> None:
    told: list[int] = []
    reasons = 0
    notices = Notices(lambda: told.append(reasons), SECONDS)
    notices.state_changed()
    for _ in range(100):
        reasons += 1
        notices.reason_changed()
    assert told == [0]
    await asyncio.sleep(3 * SECONDS)
    assert told == [0, 100]
    notices.reason_changed()
    notices.state_changed()
    await asyncio.sleep(3 * SECONDS)
    assert told == [0, 100, 100]


async def test_federation_first_client_hears_once_of_all_that_come_after_it(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, clients="a", min_clients=100) as bench:
        session = bench.federation.sessions.open("a")
        for missing in range(99, 0, -1):
            bench.federation.stand(FederationState.WAITING, f"for {missing} more clients")
        await asyncio.sleep(1.2)
        heard = [await session.next_to_say() for _ in range(session.num_unsaid)]
    assert [notice.reason for notice in heard if isinstance(notice, TellWaiting)] == [
        "for 99 more clients",
        "for 1 more clients",
    ]
