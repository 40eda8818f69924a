"""The addresses of a server: where it listens, and what it tells sites."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedserver.store import State
from fedserver.store.folder import ADDRESSES
from fedstream.files import write_durably
from fedstream.tls import ascii_host, shown_address, split_address

_FACT = "addresses for sites"


@dataclass(frozen=True, slots=True)
class Advertised:
    """Where sites reach a server: for everything, and for joining; HOST:PORT."""

    server: str
    enrolment: str


def own_addresses() -> Iterable[str]:
    """Names and addresses by which other machines may know this one, at least one; never fails."""
    found = []
    with contextlib.suppress(ValueError):  # a machine may be called what no certificate can say
        found.append(ascii_host(socket.gethostname()))
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # No packet is sent by connecting a datagram socket: it only asks which address a route would use.
        probe.connect(("192.0.2.1", 9))
        found.append(probe.getsockname()[0])
    return found or ["localhost"]


def lasting_port() -> int:
    """A port of loopback that nobody uses now, below those that the system gives to outgoing connections.

    A server that stops and starts again must find its port free, though clients try to reach it all the time.
    """
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port between 20000 and 30000")


def enrolment_listen(listen: str, enrol_listen: str) -> str:
    """Where enrolment listens: as set, or on the port after that of the server."""
    if enrol_listen:
        return enrol_listen
    host, port = split_address(listen)
    return shown_address(host, port + 1 if 0 < port < 65_535 else 0)


def beyond_loopback(listen: str) -> str:
    """What to listen on in place of an address of loopback, so that other machines reach it in the same way."""
    host, port = split_address(listen)
    return shown_address("::" if ":" in host else "0.0.0.0", port)  # noqa: S104 - advice


def reached_as(address: str, advertise: Sequence[str]) -> str:
    """An address that is listened on, as sites dial it."""
    host, port = split_address(address)
    if advertise:
        host = advertise[0]
    elif host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
        host = list(own_addresses())[-1]
    return shown_address(host, port)


def keep_advertised(state: State, advertised: Advertised) -> None:
    """Remember it, for invitations that are made while no server runs."""
    state.remember(_FACT, json.dumps(asdict(advertised)))


def kept_advertised(state: State) -> Advertised | None:
    """What was remembered, by `fedserver init` or by the last server."""
    text = state.fact(_FACT)
    return Advertised(**json.loads(text)) if text is not None else None


def choose(state: State, listen: str, enrol_listen: str, advertise: Sequence[str]) -> None:
    """Keep what `fedserver init` was told, as the default of a later `fedserver run` on the same state directory."""
    chosen = {"listen": listen, "enrol_listen": enrol_listen, "advertise": list(advertise)}
    write_durably(state.files, state.folder / ADDRESSES, [json.dumps(chosen, indent=2).encode()])


def chosen(folder: Path) -> dict[str, Any]:
    """The settings that `choose` kept in a state directory; none if there are none that can be read."""
    try:
        found: Any = json.loads((folder / ADDRESSES).read_text())
    except (OSError, ValueError):
        return {}
    known = ("listen", "enrol_listen", "advertise")
    return {key: found[key] for key in known if key in found} if isinstance(found, dict) else {}
