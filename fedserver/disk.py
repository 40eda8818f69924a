"""A watch over the disk of the state directory: what it refused, whether it is well again, and whether it will last."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import timedelta

import structlog

from fedserver.store import State
from fedserver.store.disk import NEXT_TO_NOTHING_BYTES, WAYS_OUT, DiskTrouble, FreeBytes, free_bytes, trouble_of
from fedstream import limits
from fedstream.errors import FedstreamError, LimitExceeded
from fedstream.sizes import size

log = structlog.get_logger()


def enough_bytes(min_free_bytes: int) -> int:
    """What has to be free for a server to work at all. With less it waits, be it at its start or later."""
    return min(min_free_bytes, limits.WINDOW_BYTES)


def pause_seconds(retry_seconds: float) -> float:
    """Between two looks at a disk in trouble: never none, which would be a hot loop."""
    return max(retry_seconds, 0.01)


class DiskRefuses(FedstreamError):
    """A durable step cannot be done and can no longer be waited for. The message says why and what to do."""


class DiskWatch:
    """Knows whether the disk is in trouble. Used from the event loop.

    Args:
        state: the state directory.
        min_free_bytes: margin that a round leaves free.
        retry_seconds: when it is worth trying again.
        free: how much is free; of the machine by default.
    """

    def __init__(self, state: State, min_free_bytes: int, retry_seconds: float, free: FreeBytes = free_bytes) -> None:
        self._state, self._min_free_bytes, self._free = state, min_free_bytes, free
        self._enough_bytes = enough_bytes(min_free_bytes)
        self.retry_seconds = pause_seconds(retry_seconds)
        self.trouble: DiskTrouble | None = None

    def note(self, error: BaseException) -> DiskTrouble | None:
        """Take in an error of a durable step; returns the trouble it means, `None` if it is not about the disk."""
        trouble = trouble_of(error)
        if isinstance(error, FileNotFoundError) and not self._state.folder.is_dir():
            trouble = DiskTrouble.GONE
        if trouble is DiskTrouble.FAILING:
            try:
                if self._free(self._state.folder) < NEXT_TO_NOTHING_BYTES:
                    trouble = DiskTrouble.FULL
            except OSError:
                trouble = DiskTrouble.GONE
        if trouble is not None:
            self._take_in(trouble, error)
        return trouble

    @contextlib.contextmanager
    def may_refuse(self) -> Iterator[None]:
        """For a step that can be left undone: that the disk refuses it is noted as trouble, and nothing is raised."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if self.note(error) is None:
                raise

    def _take_in(self, trouble: DiskTrouble, error: BaseException) -> None:
        if trouble is not self.trouble:
            self.trouble = trouble
            log.error("disk trouble", words=self.words(), error=str(error))

    def _room(self) -> int | None:
        """Free bytes; `None` where the folder cannot even be asked, which is trouble too."""
        try:
            return self._free(self._state.folder)
        except OSError as error:
            self._take_in(DiskTrouble.GONE, error)
            return None

    def words(self) -> str:
        """What is wrong, for people; empty where nothing is."""
        return f"the disk of {self._state.folder} {self.trouble.value}" if self.trouble is not None else ""

    def ways_out(self) -> str:
        """What mends it, for people; empty where nothing is wrong."""
        return WAYS_OUT[self.trouble] if self.trouble is not None else ""

    def final_words(self) -> DiskRefuses:
        """Why the server ends, and what to do."""
        return DiskRefuses(f"{self.words()}: {self.ways_out()}, then start again; what was committed is kept")

    def refusal(self) -> LimitExceeded:
        """What a client hears whose call the disk did not allow. It names no path: clients have no business there."""
        assert self.trouble is not None, "refused only when there is trouble"
        message = f"the server's disk {self.trouble.value}; nothing that was committed is lost, come back later"
        return LimitExceeded(message, timedelta(seconds=self.retry_seconds), limit="disk")

    async def is_well_again(self) -> bool:
        """Try a small durable write; whether there is no trouble any more.

        On a disk that was full, a few free kilobytes are no end of it: an upload must be able to go on.
        """
        if self.trouble is None:
            return True
        if self.trouble is DiskTrouble.FULL and (self._room() or 0) < self._enough_bytes:
            return False
        try:
            await asyncio.to_thread(self._state.require_writable)
        except (OSError, sqlite3.Error) as error:
            self.note(error)
            return False
        log.info("the disk is well again")
        self.trouble = None
        return True

    def shortage(self, cohort_size: int, model_bytes: int) -> str:
        """Why there is too little space for a round of that size, for people; empty if there is enough.

        A round may need an update of the model's size from each of its cohort, and the new model.
        """
        needed = (cohort_size + 1) * model_bytes + self._min_free_bytes
        free = self._room()
        if free is None:
            return f"for the disk: {self.words()}; {self.ways_out()}, and the server goes on by itself"
        if free >= needed:
            return ""
        return (
            f"for disk space: {size(free)} are free where {self._state.folder} is, a round with {cohort_size} "
            f"sites may need {size(needed)} (min_free_bytes included)"
        )
