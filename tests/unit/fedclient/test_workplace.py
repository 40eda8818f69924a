"""What stays on a site's disk while rounds go by without it. A moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedclient.events import RoundOutcome
from fedclient.workplace import Errands, Workplace
from fedstream.manifest import Digest, ModelRef

pytestmark = pytest.mark.numpy_task

OLD, NEW = Digest.of(b"old"), Digest.of(b"new")


async def test_base_of_what_an_earlier_process_trained_stays_until_it_is_saved_for_people(tmp_path: Path) -> None:
    kept: list[set[Digest]] = []
    base, finished = SimpleNamespace(digest=OLD), SimpleNamespace(base=OLD)
    keepsakes = SimpleNamespace(has_any=False, bases=[])

    async def keep(found: Any, _finished: Any) -> None:
        keepsakes.has_any, keepsakes.bases = True, [found.digest]

    async def fetch_ahead(_outcome: RoundOutcome) -> None:
        return

    async def keep_only(in_use: Callable[[], set[Digest]]) -> None:
        kept.append(in_use())

    tools: Any = SimpleNamespace(
        global_models=SimpleNamespace(fetch_ahead=fetch_ahead, keep_only=keep_only),
        keepsakes=keepsakes,
        updates=SimpleNamespace(latest=lambda: finished),
        models=SimpleNamespace(get={OLD: base}.get),
        keep=keep,
    )
    offers: Any = SimpleNamespace(job=None)
    task: Any = None
    outcome = RoundOutcome(
        round=2,
        succeeded=True,
        reason="",
        outcome="",
        outcome_reason="",
        global_model=ModelRef(2, NEW),
        metrics={},
    )
    await Workplace(task, tools, offers, Errands(), tmp_path / "cache").fetch_ahead(outcome)
    assert kept == [{OLD}]
