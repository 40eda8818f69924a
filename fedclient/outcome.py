"""The end of a federation at a site: its final models, fetched while the server is there and saved for plain use."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import structlog

from fedclient.download import Downloader
from fedclient.events import FederationOutcome, ModelRef
from fedclient.models import LocalModel, ModelStore
from fedclient.requests import CHUNK_BYTES
from fedclient.training import Site, Trainer
from fedstream.errors import FedstreamError
from fedtask.registry import model_stem

log = structlog.get_logger()

FETCH_SECONDS = 60.0
"""How long the server may take to give the final models, after which it is taken to be gone."""


@dataclass(frozen=True, slots=True)
class FinalModels:
    """The best global model and the last one, on disk; the same where the last is the best, or could not be had."""

    best: LocalModel
    last: LocalModel


async def fetch_models(outcome: FederationOutcome, site: Site, downloader: Downloader) -> FinalModels | None:
    """Download the final models; `None`, with a line in the log, if the server does not give them any more."""
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            best = await _fetch(outcome.best, site, downloader)
            last = await _fetch(outcome.last, site, downloader)
    except (FedstreamError, TimeoutError, OSError) as error:
        log.warning("the final model could not be had", because=str(error) or "the server does not answer")
        return None
    return FinalModels(best, last)


def find_models(outcome: FederationOutcome, store: ModelStore) -> FinalModels | None:
    """The final models where both are on disk."""
    best, last = store.get(outcome.best.digest), store.get(outcome.last.digest)
    return None if best is None or last is None else FinalModels(best, last)


async def _fetch(model: ModelRef, site: Site, downloader: Downloader) -> LocalModel:
    schema = site.description.schema
    return await downloader.fetch(model.digest, schema, CHUNK_BYTES, lambda _done, _total: None)


async def save_models(models: FinalModels, task_name: str, trainer: Trainer) -> list[Path]:
    """Write the best model as `OUT/GLOBAL_MODEL*`, and the last one beside it if it is another."""
    stem = model_stem(task_name)
    paths = await trainer.save_global(models.best.path, stem)
    if models.last.digest != models.best.digest:
        paths += await trainer.save_global(models.last.path, f"{stem}_last")
    return paths


def describe(outcome: FederationOutcome) -> str:
    """Why it ended and how good the best model is, for people."""
    figures = [f"{name} {value:.4f}" for name, value in outcome.metrics.items() if value is not None]
    text = f"federation finished: {outcome.reason}"
    if figures:
        text += f"\nbest global model (round {outcome.best.version}): {', '.join(figures)}"
    return text
