"""`fedserver init`: the federation's authority and the server's certificate, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from fedserver.addresses import Advertised, choose, enrolment_listen, keep_advertised, reached_as
from fedserver.clock import SystemClock
from fedserver.enrolment import AuditLog
from fedserver.exit_codes import ExitCode, fail
from fedserver.gate import open_authority, server_identity
from fedserver.store import State, StateError
from fedserver.store.keys import AUTHORITY_KEY
from fedstream.certificates import facts_of
from fedstream.tls import ascii_host, split_address


def initialise(folder: Path, listen: str, enrol_listen: str, advertise: Sequence[str]) -> None:
    """Make what is missing, keep what is there, and say what a security officer wants to compare."""
    for address in (listen, *([enrol_listen] if enrol_listen else [])):
        _require_address(address)
    advertise = [_advertised(name) for name in advertise]
    try:
        state = State(folder)
        try:
            authority = open_authority(state, AuditLog(state.folder, SystemClock()))
            server = server_identity(state, list(advertise))
            choose(state, listen, enrol_listen, advertise)
            enrolment = reached_as(enrolment_listen(listen, enrol_listen), advertise)
            keep_advertised(state, Advertised(reached_as(listen, advertise), enrolment))
        finally:
            state.close()
    except StateError as error:
        raise fail(str(error), ExitCode.BAD_STATE) from error
    typer.echo(f"authority  {facts_of(authority.certificate).fingerprint}, its key in {folder / AUTHORITY_KEY}")
    typer.echo(f"server     {facts_of(server.certificate).fingerprint}")
    typer.echo(f"sites join at {enrolment} and then reach {reached_as(listen, advertise)}")
    typer.echo(f"next: fedserver run --state {folder}, and for each site: fedserver invite SITE_NAME --state {folder}")


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
