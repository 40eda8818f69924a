"""The clients that are connected now, and what is to be said to each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable

from fedserver.coordinator.effects import Effect
from fedstream.waiting import comes

LONGEST_FAREWELL_SECONDS = 3600.0
"""How long a federation that has ended waits at most for a client that fetches its models, however slow its line is."""

_MOST_UNSAID = 100
"""Messages that wait to be said, beyond which a client is not listened to: most of what it says makes one more."""


class Session:
    """One client's open stream: what is to be said, and the sign that a newer stream took over."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.superseded = asyncio.Event()
        self.heard_at = -math.inf  # when the client said something last, by the steady clock
        self._all_is_said = False
        self._outbox: asyncio.Queue[Effect] = asyncio.Queue()
        self._has_room = asyncio.Event()
        self._has_room.set()

    @property
    def num_unsaid(self) -> int:
        """How many messages wait."""
        return self._outbox.qsize()

    def say(self, effect: Effect) -> None:
        """Put it behind what is still to be said; after the last word, nothing is."""
        if self._all_is_said:
            return
        self._outbox.put_nowait(effect)
        if self.num_unsaid >= _MOST_UNSAID:
            self._has_room.clear()

    async def next_to_say(self) -> Effect:
        """Wait for it, if there is none."""
        effect = await self._outbox.get()
        if self.num_unsaid < _MOST_UNSAID:
            self._has_room.set()
        return effect

    def fall_silent(self) -> None:
        """Take note that the last word is said. The client is listened to all the same, however much it says."""
        self._all_is_said = True
        self._has_room.set()

    async def has_room(self) -> None:
        """Wait until the client has read enough of what was said to it."""
        await self._has_room.wait()


class Sessions:
    """At most one open session per client. Used from the event loop only."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}
        self._emptied = asyncio.Event()

    def open(self, client: str) -> Session:
        """A new session; an older one of the same client is told to end."""
        older = self._open.get(client)
        if older is not None:
            older.superseded.set()
        session = self._open[client] = Session(client)
        return session

    def close(self, session: Session) -> bool:
        """Forget a session; whether it was still the client's newest."""
        is_newest = self._open.get(session.client) is session
        if is_newest:
            del self._open[session.client]
        if not self._open:
            self._emptied.set()
        return is_newest

    def __contains__(self, client: object) -> bool:
        return client in self._open

    @property
    def clients(self) -> list[str]:
        """Names of the clients that are connected."""
        return list(self._open)

    def say(self, effects: Iterable[Effect]) -> None:
        """Queue messages; those for clients that are not connected are dropped: a reconnect repeats what matters."""
        for effect in effects:
            session = self._open.get(effect.client)
            if session is not None:
                session.say(effect)

    async def drained(self, timeout_seconds: float) -> None:
        """Wait until every session has ended by itself, or the time is up."""
        self._emptied.clear()
        if self._open:
            await comes(self._emptied, timeout_seconds)
