"""The federation's global models as they come out of rounds: fetched at once, kept as long as they may be of use.

A new global model is the next round's base, and one of them is the best one in the end. To have them when they are
asked for makes rounds shorter, and a server that goes as soon as the federation is over takes nothing along.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import structlog

from fedclient.download import Downloader
from fedclient.events import FederationOutcome, RoundOutcome
from fedclient.requests import CHUNK_BYTES
from fedstream.errors import FedstreamError
from fedstream.manifest import Digest
from fedstream.schema import ModelSchema
from fedstream.scores import score_of

log = structlog.get_logger()


class GlobalModels:
    """What this client has of them.

    Args:
        downloader: fetches and keeps them.
        schema: theirs.
    """

    def __init__(self, downloader: Downloader, schema: ModelSchema) -> None:
        self._downloader = downloader
        self._schema = schema
        self._newest: Digest | None = None
        self._final: frozenset[Digest] = frozenset()
        self._best: Digest | None = None
        self._best_score = score_of({})

    async def fetch_ahead(self, outcome: RoundOutcome) -> None:
        """Fetch the model that a round has made. Failing to costs nothing: it is asked for again when it is needed."""
        model = outcome.global_model
        if model is None:
            return
        self._newest = model.digest
        if not outcome.succeeded:
            return
        score = score_of(outcome.metrics)
        if score > self._best_score:  # a guess at which one the server will call the best; a wrong one is a download
            self._best, self._best_score = model.digest, score
        try:
            await self._downloader.fetch_ahead(model.digest, self._schema, CHUNK_BYTES)
        except FedstreamError as error:
            log.debug("the new global model was not fetched ahead", because=str(error))

    def keep_final(self, outcome: FederationOutcome) -> None:
        """Drop these models no more, be they fetched already or not."""
        self._final = frozenset({outcome.best.digest, outcome.last.digest})

    async def keep_only(self, in_use: Callable[[], Collection[Digest]]) -> None:
        """Drop all models but those, the newest, the one that is the best so far, and the final ones."""
        await self._downloader.keep_only(lambda: {*in_use(), *self._final, *filter(None, (self._newest, self._best))})
