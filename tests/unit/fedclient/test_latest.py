"""Errands of which only the newest matters."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from fedclient.latest import Latest

NEVER = 3600.0


@dataclass
class Errand:
    """Notes what was newest when each run began; a run lasts until `gate` is open."""

    newest: int = 0
    runs: list[int] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    most_at_once: int = 0
    now: int = 0

    async def __call__(self) -> None:
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        self.runs.append(self.newest)
        await self.gate.wait()
        self.now -= 1


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_errand_asked_for_while_it_runs_runs_once_more_with_the_newest() -> None:
    errand = Errand()
    latest = Latest(errand, 0.0)
    for errand.newest in (1, 2, 3):
        latest.ask()
        await settle()
    assert errand.runs == [1]
    errand.gate.set()
    await latest.finish()

    assert (errand.runs, errand.most_at_once) == ([1, 3], 1)


async def test_errand_within_the_pause_waits_for_its_end() -> None:
    errand = Errand()
    errand.gate.set()
    latest = Latest(errand, 0.2)
    latest.ask()
    await settle()
    latest.ask()
    await settle()
    assert errand.runs == [0]
    await asyncio.sleep(0.4)

    assert errand.runs == [0, 0]


async def test_first_errand_waits_for_its_time_unless_somebody_is_in_a_hurry() -> None:
    errand = Errand()
    errand.gate.set()
    soon, late = (Latest(errand, 0.0, first_at=time.monotonic() + seconds) for seconds in (0.2, NEVER))
    soon.ask()
    late.ask()
    await settle()
    assert errand.runs == []
    await asyncio.sleep(0.4)
    assert errand.runs == [0]
    await late.finish()
    assert errand.runs == [0, 0]


async def test_errand_that_is_forbidden_waits_until_it_is_allowed() -> None:
    errand = Errand()
    errand.gate.set()
    latest = Latest(errand, NEVER)
    latest.forbid()
    latest.ask()
    await settle()
    assert errand.runs == []
    latest.allow()
    latest.forbid()  # at once again, as when one offer takes another's place
    await settle()
    assert errand.runs == []
    latest.allow()
    await settle()

    assert errand.runs == [0]
    await latest.cancel()


async def test_finish_runs_what_was_asked_for_despite_pause_and_prohibition() -> None:
    errand = Errand()
    errand.gate.set()
    latest = Latest(errand, NEVER)
    latest.ask()
    await settle()
    latest.forbid()
    errand.newest = 2
    latest.ask()
    await asyncio.wait_for(latest.finish(), 5)
    await latest.finish()

    assert errand.runs == [0, 2]


async def test_finish_of_what_nobody_asked_for_does_nothing() -> None:
    errand = Errand()
    await Latest(errand, NEVER).finish()

    assert errand.runs == []


async def test_errand_that_fails_is_told_and_runs_again_when_asked() -> None:
    failures = [OSError("no space"), ValueError()]

    async def fail() -> None:
        if failures:
            raise failures.pop(0)

    latest = Latest(fail, 0.0)
    with capture_logs() as logs:
        for _ in range(3):
            latest.ask()
            await latest.finish()

    assert [entry["because"] for entry in logs] == ["no space", "ValueError()"]


async def test_cancel_stops_a_run_and_forgets_the_next() -> None:
    errand = Errand()
    latest = Latest(errand, NEVER)
    latest.ask()
    await settle()
    latest.ask()
    await latest.cancel()
    errand.gate.set()
    await latest.finish()

    assert errand.runs == [0]


async def test_finish_that_takes_too_long_leaves_the_run_to_cancel() -> None:
    errand = Errand()
    latest = Latest(errand, NEVER)
    latest.ask()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(latest.finish(), 0.05)
    assert errand.now == 1
    errand.gate.set()
    await latest.finish()

    assert errand.now == 0
