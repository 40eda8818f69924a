"""`fedserver invite`, `clients` and `revoke`: with a running server through its administration, or without one."""

from __future__ import annotations

import asyncio
import json
import math
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import typer
from google.protobuf.duration_pb2 import Duration

from fedserver.addresses import chosen, kept_advertised
from fedserver.clock import SystemClock
from fedserver.commands.admin import (
    CALL_SECONDS,
    MOMENT_SECONDS,
    administration,
    console,
    is_running,
    reading,
    refusal,
)
from fedserver.commands.tables import compact_table
from fedserver.enrolment.membership import LONGEST_INVITATION
from fedserver.exit_codes import ExitCode, fail
from fedserver.gate import Gate, kept_client_ca, server_identity
from fedserver.office import Office
from fedserver.store import State, StateError
from fedserver.store.clients import kept_clients
from fedserver.store.database import Database
from fedserver.store.folder import is_state_directory
from fedserver.store.members import (
    Invitation,
    InvitationState,
    IssuedCertificate,
    SiteState,
    kept_certificates,
    kept_invitations,
    kept_sites,
)
from fedstream.errors import ProtocolError
from fedstream.tls import is_loopback, split_address
from fedstream.v1 import admin_pb2

_LONGEST_HOURS = LONGEST_INVITATION // timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Letter:
    """What a coordinator sends to a site."""

    token: str
    expires: datetime
    server: str
    replaces: bool
    """Whether an earlier token, which could still be used, is taken back by it."""
    is_member: bool
    """Whether a site of that name has joined before, whose place is taken by whoever joins with it."""
    takes_own_certificates: bool
    """Whether the server lets in sites of a further authority, of which it takes none under a name that is invited."""


def invite(state: Path, name: str, valid_hours: float | None) -> None:
    """Make a join token and print the command that it is for."""
    if valid_hours is not None and not 0 < valid_hours <= _LONGEST_HOURS:
        raise fail(f"--valid-hours: give more than 0 and at most {_LONGEST_HOURS}", ExitCode.BAD_CONFIGURATION)
    valid_for = timedelta(hours=valid_hours) if valid_hours is not None else None
    letter = _ask_server(state, name, valid_for) if is_running(state) else _write_letter(state, name, valid_for)
    command = shlex.join(["fedclient", "join", letter.server, "--token", letter.token])
    typer.echo(f"{name} joins once, until {letter.expires:%Y-%m-%d %H:%M} UTC, with\n\n    {command}\n")
    typer.echo("and then takes part with\n\n    fedclient run --data DATA_FOLDER\n")
    if letter.replaces:
        typer.echo(f"The earlier token of {name}, which was not used, is taken back.")
    if letter.is_member:
        typer.echo(f"{name} has joined before: once this token is used, the certificate that it has now is refused.")
    elif letter.takes_own_certificates:
        typer.echo(f"From now on a certificate for {name} by the authority of --client-ca is refused, also one that")
        typer.echo("was let in before: whoever takes part under this name joins with this token first.")
    typer.echo("The token is a secret: whoever uses it first is this site. Send it over a channel that you trust.")
    if is_loopback(split_address(letter.server)[0]):
        typer.echo(f"Only this machine reaches {letter.server}. For sites elsewhere, start the server with --advertise")
        typer.echo("and a name of it, and with --listen beyond loopback.")


def _ask_server(state: Path, name: str, valid_for: timedelta | None) -> Letter:
    request = admin_pb2.InviteRequest(client_name=name)
    if valid_for is not None:
        request.valid_for.CopyFrom(Duration(seconds=math.ceil(valid_for.total_seconds())))
    with reading(state) as reader:
        replaces = _is_waited_for(name, kept_invitations(reader.database))
        is_member = _is_member(name, kept_certificates(reader.database))
        takes_own = kept_client_ca(reader.database) is not None
    with administration(state) as stub:
        answer = stub.Invite(request, timeout=CALL_SECONDS)
    return Letter(answer.token, answer.expires.ToDatetime(UTC), answer.server_address, replaces, is_member, takes_own)


def _write_letter(state: Path, name: str, valid_for: timedelta | None) -> Letter:
    with _office(state) as office:
        replaces = _is_waited_for(name, office.membership.book.open_invitations(name))
        is_member = _is_member(name, office.membership.book.live_certificates(name))
        token, expires = asyncio.run(office.invite(name, valid_for))
        takes_own = office.membership.takes_own_certificates
        return Letter(token, expires, office.advertised.server, replaces, is_member, takes_own)


def _is_waited_for(name: str, invitations: Iterable[Invitation]) -> bool:
    still_open = (one for one in invitations if one.name == name and one.state is InvitationState.OPEN)
    return any(one.expires > time.time() for one in still_open)


def _is_member(name: str, certificates: Iterable[IssuedCertificate]) -> bool:
    return any(one.name == name and not one.is_revoked for one in certificates)


def revoke(state: Path, name: str) -> None:
    """Keep a site out, from now on."""
    if is_running(state):
        with administration(state) as stub:
            answer = stub.RevokeSite(admin_pb2.RevokeSiteRequest(client_name=name), timeout=CALL_SECONDS)
        certificates, invitations = answer.certificates, answer.invitations
    else:
        with _office(state) as office:
            revoked = asyncio.run(office.membership.revoke(name))
        certificates, invitations = revoked.certificates, revoked.invitations
    typer.echo(f"{name} is revoked: {certificates} certificates, {invitations} open invitations")
    if not _was_known(state, name):
        typer.echo(f"No site called {name} was invited or has been seen; if one comes, it is kept out.")


def _was_known(state: Path, name: str) -> bool:
    """Whether there is more of a site than that it was revoked."""
    with reading(state) as reader:
        database = reader.database
        names = {one.name for one in kept_clients(database)} | {one.name for one in kept_invitations(database)}
        return name in names | {one.name for one in kept_certificates(database)}


@contextmanager
def _office(folder: Path) -> Iterator[Office]:
    """The office of a state directory that no server uses; what is refused ends the command with a plain sentence."""
    try:
        if not is_state_directory(folder):
            message = f"{folder} is no state directory of a server; make one with `fedserver init`, or give its --state"
            raise fail(message, ExitCode.BAD_STATE)
        state = State(folder, lock_seconds=MOMENT_SECONDS)
        try:
            advertised = kept_advertised(state)
            if advertised is None:
                message = f"nobody has said yet how sites reach the server of {folder}: run `fedserver init` on it"
                raise fail(message, ExitCode.FAILED)
            gate = Gate.as_last_served(state, SystemClock())
            yield Office(gate.membership, server_identity(state, chosen(folder).get("advertise", [])), advertised)
        finally:
            state.close()
    except StateError as error:
        raise fail(str(error), ExitCode.BAD_STATE) from error
    except ProtocolError as error:
        raise refusal(error) from error


UNINVITED = "uninvited"
"""A site that was seen and never invited: it brought a certificate of --client-ca, or was asked for none."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A site as it is listed; times in unix seconds, `None` for none."""

    name: str
    state: str
    invited_until: float | None
    certificate_until: float | None
    last_seen: float | None


def show_clients(state: Path, *, as_json: bool) -> None:
    """List the sites that were invited, kept out, or seen without an invitation."""
    with reading(state) as reader:
        seen = {one.name: one.last_seen for one in kept_clients(reader.database)}
        if is_running(state):
            seen |= _seen_now(state)
        listed = _listed(reader.database, seen)
    if as_json:
        fields = ("name", "state", "invited_until", "certificate_until", "last_seen")
        typer.echo(json.dumps({"sites": [{key: _fact(one, key) for key in fields} for one in listed]}, indent=2))
        return
    now = time.time()
    rows = (
        (one.name, state_words(one, now), *map(_shown, (one.certificate_until, one.invited_until, one.last_seen)))
        for one in listed
    )
    console().print(compact_table("Sites", ("site", "state", "certificate until", "invited until", "last seen"), rows))


def state_words(one: Listed, now: float) -> str:
    """How a site stands, for people; programs go by the dates."""
    if one.state == SiteState.INVITED.value and one.invited_until is not None and one.invited_until <= now:
        return "invitation expired"
    if one.state == SiteState.ENROLLED.value and one.certificate_until is not None and one.certificate_until <= now:
        return "certificate expired"
    return one.state


def _listed(database: Database, seen: Mapping[str, float]) -> list[Listed]:
    invited = {one.name: one.expires for one in kept_invitations(database) if one.state is InvitationState.OPEN}
    certified = {one.name: one.expires for one in kept_certificates(database) if not one.is_revoked}
    sites = kept_sites(database)
    uninvited = [
        Listed(name, UNINVITED, invited_until=None, certificate_until=None, last_seen=seen[name])
        for name in seen.keys() - {site.name for site in sites}
    ]
    listed = [
        Listed(
            site.name,
            site.state.value,
            invited.get(site.name),
            certified.get(site.name) if site.state is not SiteState.REVOKED else None,
            seen.get(site.name),
        )
        for site in sites
    ]
    return sorted([*listed, *uninvited], key=lambda one: one.name)


def _seen_now(state: Path) -> dict[str, float]:
    with administration(state) as stub:
        clients = stub.ListClients(admin_pb2.ListClientsRequest(), timeout=CALL_SECONDS).clients
    return {client.name: client.last_seen.ToNanoseconds() / 1e9 for client in clients}


def _fact(one: Listed, key: str) -> str | None:
    value = getattr(one, key)
    return _shown(value) if not isinstance(value, str) else value


def _shown(unix_seconds: float | None) -> str:
    if unix_seconds is None:
        return ""
    return f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
