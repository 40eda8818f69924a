"""The federation's global models as they come out of rounds: fetched at once, kept as long as they may be of use.

A new global model is the next round's base, and one of them is the best one in the end. To have them when they are
asked for makes rounds shorter, and a server that goes as soon as the federation is over takes nothing along.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping

import structlog

from fedclient.download import Downloader
from fedclient.events import ModelRef, RoundOutcome
from fedclient.models import ModelStore
from fedclient.requests import CHUNK_BYTES
from fedstream.errors import FedstreamError
from fedstream.manifest import Digest
from fedstream.schema import ModelSchema

log = structlog.get_logger()


class GlobalModels:
    """What this client has of them.

    Args:
        downloader: fetches them.
        store: holds them.
        schema: theirs.
    """

    def __init__(self, downloader: Downloader, store: ModelStore, schema: ModelSchema) -> None:
        self._downloader = downloader
        self._store = store
        self._schema = schema
        self._best: Digest | None = None
        self._best_score = (-math.inf, -math.inf)

    async def fetch_ahead(self, outcome: RoundOutcome) -> None:
        """Fetch the model that a round has made. Failing to costs nothing: it is asked for again when it is needed."""
        model = outcome.global_model
        if not outcome.succeeded or model is None:
            return
        score = _score(outcome.metrics)
        if score > self._best_score:
            self._best, self._best_score = model.digest, score
        try:
            await self._fetch(model)
        except FedstreamError as error:
            log.debug("the new global model was not fetched ahead", because=str(error))

    async def _fetch(self, model: ModelRef) -> None:
        await self._downloader.fetch(model.digest, self._schema, CHUNK_BYTES, lambda _done, _total: None)

    async def keep_only(self, digests: Collection[Digest]) -> None:
        """Drop all models but those and the one that is the best so far."""
        kept = set(digests) if self._best is None else {*digests, self._best}
        await asyncio.to_thread(self._store.keep_only, kept)


def _score(metrics: Mapping[str, float | None]) -> tuple[float, float]:
    """The server's order of models, only to guess which one it will call the best: a wrong guess is a download."""
    accuracy, loss = metrics.get("accuracy"), metrics.get("loss")
    return (-math.inf if accuracy is None else accuracy, -math.inf if loss is None else -loss)
