"""What a job tells, and what stays at the site."""

from __future__ import annotations

from types import SimpleNamespace

from fedclient.events import ModelRef, Offer, Phase, Progress
from fedclient.job import Job
from fedclient.reporting import Reporting
from fedstream.manifest import Digest
from fedstream.plan import Plan


def test_progress_shows_all_metrics_at_the_site_and_tells_those_that_it_allows() -> None:
    shown: list[Progress] = []
    display = SimpleNamespace(show=lambda _round, progress, _note: shown.append(progress))
    shop = SimpleNamespace(display=display, reporting=Reporting(frozenset({"loss"})), on_news=lambda: None)
    offer = Offer("o", "u", 1, ModelRef(0, Digest(bytes(32), 1)), Plan(2, 32, 0.1, 0, seed=0), 60.0, 60.0)
    job = Job(offer, shop)  # type: ignore[arg-type]
    progress = Progress(Phase.TRAINING, 1, 2, 0.5, {"loss": 0.25, "accuracy": 0.75})
    job._show(progress)

    assert shown == [progress]
    assert job.progress == Progress(Phase.TRAINING, 1, 2, 0.5, {"loss": 0.25})
