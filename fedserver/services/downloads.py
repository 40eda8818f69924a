"""How many downloads a site may have at once: each holds a message of up to 4 MiB until the site has taken it.

A manifest and a body count alike. A site that asks and never reads would fill the memory with them. To end such a call
gives nothing back: gRPC keeps what was written for as long as the connection lives. So those that stood still go on
counting for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from fedstream.errors import LimitExceeded
from fedstream.waiting import comes

MOST_AT_ONCE = 8
"""Of one site. A client has one or two; connections that broke and are not known to be broken yet may have others."""

STANDSTILL_SECONDS = 180.0
"""After so long a download that nobody takes is ended. A client gives its side up after 120 s."""

_REMEMBERED_SECONDS = 3600.0
_RETRY = timedelta(seconds=10)


class Downloads:
    """Counts the downloads of each site. A client without a certificate has an empty name here, and no limit.

    Used from the event loop.
    """

    def __init__(self) -> None:
        self._at_work: Counter[str] = Counter()
        self._none = asyncio.Event()
        self._none.set()
        self._stood_still: defaultdict[str, deque[float]] = defaultdict(deque)

    @contextmanager
    def one(self, site: str) -> Iterator[str]:
        """Count a download of this site for as long as it is at work; gives the site's name.

        Raises:
            LimitExceeded: it has too many.
        """
        if site and self._at_work[site] + self._num_stood_still(site) >= MOST_AT_ONCE:
            message = f"this site has {MOST_AT_ONCE} downloads that it does not take; come back later"
            raise LimitExceeded(message, _RETRY, limit="downloads_of_one_site")
        self._at_work[site] += 1
        self._none.clear()
        try:
            yield site
        finally:
            self._at_work[site] -= 1
            if not self._at_work[site]:
                del self._at_work[site]
            if not self._at_work:
                self._none.set()

    async def over(self, within_seconds: float) -> None:
        """Return when no download is at work, or the time is up."""
        await comes(self._none, within_seconds)

    def note_standstill(self, site: str) -> None:
        """A download of this site was not taken for `STANDSTILL_SECONDS`, on a connection that lives."""
        if site:
            self._stood_still[site].append(time.monotonic())

    def _num_stood_still(self, site: str) -> int:
        if site not in self._stood_still:
            return 0
        noted, since = self._stood_still[site], time.monotonic() - _REMEMBERED_SECONDS
        while noted and noted[0] < since:
            noted.popleft()
        if not noted:
            del self._stood_still[site]
        return len(noted)
