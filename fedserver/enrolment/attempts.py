"""A bound on wrong tokens: for each address, and for each invitation."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import unquote

from fedstream.errors import LimitExceeded

MOST_PER_ADDRESS = 10
WINDOW_SECONDS = 60.0
MOST_PER_INVITATION = 10
"""A person who copies a token wrongly is stopped by the token's own check digits, and sends nothing at all."""

_MOST_ADDRESSES = 4_096


class Attempts:
    """Counts wrong tokens by the address they came from; of at most 4,096 addresses, the newest.

    Args:
        now: the steady clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def require(self, address: str) -> None:
        """Check that an address may try.

        Raises:
            LimitExceeded: too many wrong tokens came from it.
        """
        since, count = self._wrong.get(address, (0.0, 0))
        left = since + WINDOW_SECONDS - self._now()
        if count >= MOST_PER_ADDRESS and left > 0:
            message = f"{count} wrong tokens came from this address; come back in {left:.0f} s"
            raise LimitExceeded(message, timedelta(seconds=left), limit="wrong tokens")

    def note_wrong(self, address: str) -> None:
        """A wrong token came from an address."""
        since, count = self._wrong.pop(address, (self._now(), 0))
        if since + WINDOW_SECONDS <= self._now():
            since, count = self._now(), 0
        self._wrong[address] = (since, count + 1)
        while len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)


def address_of(peer: str) -> str:
    """The address in gRPC's `ipv4:1.2.3.4:5` or `ipv6:[::1]:5`, without the port; of version 6, the network's half.

    Whoever has one address of version 6 has 2**64.
    """
    _, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
