"""`fedserver init`: the federation's authority and the server's certificate, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from fedserver.addresses import (
    Advertised,
    choose,
    chosen,
    enrolment_listen,
    keep_advertised,
    kept_advertised,
    reached_as,
)
from fedserver.clock import SystemClock
from fedserver.enrolment import AuditLog
from fedserver.exit_codes import ExitCode, fail
from fedserver.gate import open_authority, server_identity
from fedserver.store import State, StateError
from fedserver.store.keys import AUTHORITY_KEY
from fedstream.certificates import facts_of
from fedstream.tls import ascii_host, split_address

DEFAULT_LISTEN = "0.0.0.0:8443"


@dataclass(frozen=True, slots=True)
class _Told:
    """What `fedserver init` is told; what it is not told is as it was told before, or the default."""

    listen: str
    enrol_listen: str
    advertise: Sequence[str]

    @property
    def advertised(self) -> Advertised:
        """Where sites reach a server of these settings."""
        enrolment = enrolment_listen(self.listen, self.enrol_listen)
        return Advertised(reached_as(self.listen, self.advertise), reached_as(enrolment, self.advertise))


def initialise(
    folder: Path,
    listen: str | None = None,
    enrol_listen: str | None = None,
    advertise: Sequence[str] | None = None,
) -> None:
    """Make what is missing, keep what is there, and say what a security officer wants to compare."""
    now = {"listen": listen, "enrol_listen": enrol_listen, "advertise": advertise}
    now = {key: value for key, value in now.items() if value is not None}
    told = _told({**chosen(folder), **now})
    try:
        state = State(folder)
        try:
            authority = open_authority(state, AuditLog(state.folder, SystemClock()))
            server = server_identity(state, list(told.advertise))
            choose(state, told.listen, told.enrol_listen, told.advertise)
            # A server may have been told other addresses than `init` before: these stay, too, unless some are given.
            advertised = (None if now else kept_advertised(state)) or told.advertised
            keep_advertised(state, advertised)
        finally:
            state.close()
    except StateError as error:
        raise fail(str(error), ExitCode.BAD_STATE) from error
    typer.echo(f"authority  {facts_of(authority.certificate).fingerprint}, its key in {folder / AUTHORITY_KEY}")
    typer.echo(f"server     {facts_of(server.certificate).fingerprint}")
    typer.echo(f"sites join at {advertised.enrolment} and then reach {advertised.server}")
    typer.echo(f"next: fedserver run --state {folder}, and for each site: fedserver invite SITE_NAME --state {folder}")


def _told(words: Mapping[str, Any]) -> _Told:
    told = _Told(
        words.get("listen", DEFAULT_LISTEN),
        words.get("enrol_listen", ""),
        [_advertised(name) for name in words.get("advertise", [])],
    )
    _require_address(told.listen)
    if told.enrol_listen:
        _require_address(told.enrol_listen)
    return told


def _advertised(name: str) -> str:
    try:
        return ascii_host(name)
    except ValueError as error:
        raise fail(f"--advertise: {error}", ExitCode.BAD_CONFIGURATION) from error


def _require_address(address: str) -> None:
    try:
        _, port = split_address(address)
    except ValueError as error:
        raise fail(str(error), ExitCode.BAD_CONFIGURATION) from error
    if not port:
        raise fail(f"{address} has no port that sites could be told; give one", ExitCode.BAD_CONFIGURATION)
