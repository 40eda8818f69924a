"""The final models of a federation at a site: fetched while the server is there, and saved for plain use."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from fedclient.download import Downloader, OnBytes
from fedclient.events import FederationOutcome
from fedclient.full_disk import when_the_disk_can
from fedclient.models import LocalModel, ModelStore
from fedclient.requests import CHUNK_BYTES
from fedclient.training import Site, Trainer
from fedstream.errors import FedstreamError, TransportError
from fedstream.manifest import ModelRef
from fedtask.registry import model_stem

log = structlog.get_logger()

FETCH_SECONDS = 180.0
"""For how long nothing of the final models may come, after which the server is taken to be gone; most of it may be one
chunk. As long a disk that is full is waited for."""


@dataclass(frozen=True, slots=True)
class FinalModels:
    """The best global model and the last one, on disk; the same where the last is the best, or could not be had."""

    best: LocalModel
    last: LocalModel


async def fetch_models(
    outcome: FederationOutcome, site: Site, downloader: Downloader, on_bytes: OnBytes
) -> FinalModels | None:
    """Download the final models; `None`, with a line in the log, if the server does not give them any more.

    Raises:
        OSError: this site's disk refuses them, and has for `FETCH_SECONDS` if that may pass.
    """
    try:
        # The last first: it may be on its way already, for a next round, and would be given up for the other.
        last = await _fetch(outcome.last, site, downloader, on_bytes)
        best = await _fetch(outcome.best, site, downloader, on_bytes)
    except FedstreamError as error:
        log.warning("the final model could not be had", because=str(error))
        return None
    return FinalModels(best, last)


def find_models(outcome: FederationOutcome, store: ModelStore) -> FinalModels | None:
    """The final models where both are on disk."""
    best, last = store.get(outcome.best.digest), store.get(outcome.last.digest)
    return None if best is None or last is None else FinalModels(best, last)


async def _fetch(model: ModelRef, site: Site, downloader: Downloader, on_bytes: OnBytes) -> LocalModel:
    fetch = partial(downloader.fetch, model.digest, site.description.schema, CHUNK_BYTES, on_bytes)
    fetching = asyncio.create_task(when_the_disk_can(fetch, "the final model waits for the disk", FETCH_SECONDS))
    since = time.monotonic()
    try:
        # Not so long in all: a slow line is none that is dead. What was begun ahead, for a next round, counts as well.
        while not fetching.done() and (left := max(since, downloader.moved_at) + FETCH_SECONDS - time.monotonic()) > 0:
            await asyncio.wait({fetching}, timeout=left)
        if not fetching.done():
            raise TransportError("the server does not answer")  # a TimeoutError may be the disk's, too
        return await fetching
    finally:
        fetching.cancel()


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
    if outcome.last.version == 0:
        text += "\nno round has made a model: this one is what the federation began with"
    return text
