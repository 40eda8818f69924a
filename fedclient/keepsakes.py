"""What a site keeps of its training for people: the model it trained last, and the history as a table and a picture.

None of it may stand in the way of a round. The table is a small file and is written at once. The picture takes more
processor time than everything else that a client does in a round, and is drawn by a process of its own
(`fedtask.history_picture`). The model can only be written by the worker, which does one thing at a time: it is asked
after the update was delivered, and if the next round has begun by then, after that. All is up to date when the client
ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import structlog

from fedclient.latest import Latest
from fedclient.memory import Row
from fedclient.models import LocalModel
from fedclient.training import Trainer
from fedclient.updates import FinishedUpdate
from fedstream.manifest import Digest

log = structlog.get_logger()

_PICTURE_PAUSE_SECONDS = 120.0
"""Least time between two pictures. One takes 1.3 to 2 s of one core, most of which is matplotlib's import: so it is a
fiftieth of a core at most. Where eight sites share two cores, one every 30 s each took a third of these."""

_MODEL_PAUSE_SECONDS = 30.0
"""Least time between two models."""

_LAST_SECONDS = 8.0
"""How long a client that was told to end may still save. `docker stop` kills after 10 s."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model that lies in two files: the model it started from, and the tensors that training changed."""

    base: LocalModel
    finished: FinishedUpdate


class Keepsakes:
    """Keeps them up to date.

    Args:
        trainer: writes them.
        picture_pause_seconds: least time between two pictures, and until the first one.
        model_pause_seconds: least time between two models.
        pictures: whether any are drawn.
    """

    def __init__(
        self,
        trainer: Trainer,
        picture_pause_seconds: float = _PICTURE_PAUSE_SECONDS,
        model_pause_seconds: float = _MODEL_PAUSE_SECONDS,
        *,
        pictures: bool = True,
    ) -> None:
        self._trainer = trainer
        self._unsaved: Trained | None = None
        self.has_any = False  # whether this process has been given anything to keep
        self._model = Latest(self._save_model, model_pause_seconds)
        # A federation that is over in seconds has its picture at the end: four sites on two cores that all draw one
        # beside their first rounds take half as long again for these.
        first_at = time.monotonic() + picture_pause_seconds
        self._picture = Latest(self._draw, picture_pause_seconds, first_at)
        self._has_pictures = pictures
        self._ending = False

    async def trained(self, base: LocalModel, finished: FinishedUpdate, rows: Sequence[Row]) -> None:
        """Keep what a fine-tune has made, of which `rows` is the history with all rounds before."""
        self._unsaved, self.has_any = Trained(base, finished), True
        self._model.ask()
        try:
            await asyncio.to_thread(self._trainer.save_history, list(rows))
        except OSError as error:
            log.warning("the training history could not be written", because=str(error))
        else:
            if self._has_pictures:
                self._picture.ask()

    @property
    def offers(self) -> Collection[str]:
        """The offers whose updates must stay on disk, because their model is yet to be saved."""
        return [self._unsaved.finished.offer_id] if self._unsaved is not None else []

    @property
    def bases(self) -> Collection[Digest]:
        """The models that must stay on disk for the same reason."""
        return [self._unsaved.base.digest] if self._unsaved is not None else []

    def work_begins(self) -> None:
        """A round has an offer for this site: the worker is not to be asked for anything else."""
        self._model.forbid()

    def work_ends(self) -> None:
        """The worker is free."""
        self._model.allow()

    async def finish(self) -> None:
        """Bring everything up to date, now, and wait until it is."""
        self._ending = True
        await asyncio.gather(self._model.finish(), self._picture.finish())

    async def close(self) -> None:
        """Bring everything up to date within a few seconds, or give it up. Safe to call twice."""
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self.finish()
        except TimeoutError:
            log.warning("the last model or plot is not saved: it takes too long", seconds=_LAST_SECONDS)
            await self._trainer.close()  # or the end of what it is at would be waited for
        finally:
            await asyncio.gather(self._model.cancel(), self._picture.cancel())

    async def _draw(self) -> None:
        await self._trainer.draw_history(hurry=self._ending)

    async def _save_model(self) -> None:
        unsaved = self._unsaved
        if unsaved is None:
            return
        # Not verified again: both files were when they came to be here, which is all that global models get as well.
        # What is said of it is about its own round, and not about that in which it was asked for.
        with structlog.contextvars.bound_contextvars(round=unsaved.finished.round):
            await self._trainer.save_model(unsaved.base.path, unsaved.finished.path)
        if self._unsaved is unsaved:
            self._unsaved = None
