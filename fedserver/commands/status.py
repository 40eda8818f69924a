"""`fedserver status`."""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterable
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from fedserver.commands.admin import (
    CALL_SECONDS,
    administration,
    console,
    reading,
    seconds_since,
    show_json,
)
from fedserver.commands.rounds import participation_table
from fedserver.commands.tables import compact_table
from fedserver.exit_codes import ExitCode, fail
from fedserver.store.members import SiteState, kept_sites
from fedstream.v1 import admin_pb2, admin_pb2_grpc

_WATCH_SECONDS = 1.0

_MOST_ABSENT = 20
"""Of some hundred sites that were invited, those that are yet to come would fill a screen before the round at work."""


def show_status(state: Path, *, watch: bool, as_json: bool) -> None:
    """Show it once, or again and again."""
    if watch and as_json:
        raise fail("--json is shown once: leave --watch off, and ask as often as you like", ExitCode.BAD_CONFIGURATION)
    with administration(state) as stub:
        if as_json:
            show_json(
                stub.GetState(admin_pb2.GetStateRequest(), timeout=CALL_SECONDS),
                stub.ListClients(admin_pb2.ListClientsRequest(), timeout=CALL_SECONDS),
            )
        elif watch:
            _watch(stub, state)
        else:
            console().print(picture(stub, state))


def _watch(stub: admin_pb2_grpc.AdminServiceStub, folder: Path) -> None:
    shown_on = console()
    try:
        if shown_on.is_terminal and not shown_on.is_dumb_terminal:
            with Live(picture(stub, folder), console=shown_on, refresh_per_second=4) as live:
                while True:
                    time.sleep(_WATCH_SECONDS)
                    live.update(picture(stub, folder))
        # Where nothing can be drawn over, as in `ssh server fedserver status --watch`, what is live would be written
        # once, at the end.
        while True:
            shown_on.print(picture(stub, folder))
            time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def picture(stub: admin_pb2_grpc.AdminServiceStub, folder: Path | None = None) -> RenderableType:
    """What the federation does, its clients, and the round at work; of a state directory, also who never came."""
    now = time.time()
    state = stub.GetState(admin_pb2.GetStateRequest(), timeout=CALL_SECONDS)
    clients = stub.ListClients(admin_pb2.ListClientsRequest(), timeout=CALL_SECONDS).clients
    parts: list[RenderableType] = [_headline(state, now), _clients_table(clients, now)]
    if folder is not None and (absent := _never_seen(folder, {client.name for client in clients})):
        parts.append(Text(f"Not seen yet: {absent}"))
    if state.HasField("round"):
        detail = stub.GetRound(admin_pb2.GetRoundRequest(), timeout=CALL_SECONDS)
        parts.append(participation_table(detail, now))
    return Group(*parts)


def _never_seen(folder: Path, seen: Container[str]) -> str:
    """Sites that were invited, and that the server has not met."""
    with reading(folder) as reader:
        sites = [site for site in kept_sites(reader.database) if site.state is not SiteState.REVOKED]
    absent = [f"{site.name} ({site.state.value})" for site in sites if site.name not in seen]
    more = (
        f" and {len(absent) - _MOST_ABSENT} more; `fedserver clients` lists them" if len(absent) > _MOST_ABSENT else ""
    )
    return ", ".join(absent[:_MOST_ABSENT]) + more


def _headline(state: admin_pb2.GetStateResponse, now: float) -> Text:
    name = admin_pb2.FederationState.Name(state.state).removeprefix("FEDERATION_STATE_").lower()
    sites = "site" if state.clients_connected == 1 else "sites"
    connected = f"{state.clients_connected} {sites} connected (a round needs {state.min_clients})"
    lines = [
        f"{state.federation_name}: {name} for {seconds_since(state.since, now)}: {state.reason}",
        f"round {state.round.number} of {state.rounds}, {connected}, started {seconds_since(state.started, now)} ago",
    ]
    if state.HasField("expected_remaining"):
        lines.append(_expected(state.expected_remaining.ToTimedelta().total_seconds()))
    if state.best_round:
        lines.append(f"best model so far: round {state.best_round}")
    return Text("\n".join(lines))


def _expected(seconds: float) -> str:
    """When it may be over, which nobody knows to the second."""
    minutes = math.ceil(seconds / 60)
    if not minutes:
        return "may end at any moment: the last round takes longer than those before it"
    span = f"about {minutes} min" if minutes < 120 else f"about {math.ceil(minutes / 60)} h"
    return f"{span if minutes > 1 else 'less than a minute'} to its end, if rounds take as long as the latest ones"


def _clients_table(clients: Iterable[admin_pb2.Client], now: float) -> RenderableType:
    rows = (
        (
            client.name,
            admin_pb2.ClientState.Name(client.state).removeprefix("CLIENT_STATE_").lower(),
            str(client.num_examples),
            str(client.rounds_completed),
            # One that waits has nothing to say, for hours; that its connection is lost, the state says.
            "connected"
            if client.state == admin_pb2.CLIENT_STATE_IDLE
            else f"{seconds_since(client.last_seen, now)} ago",
            client.reason,
        )
        for client in clients
    )
    return compact_table("Sites", ("site", "state", "examples", "rounds in", "last seen", "note"), rows)
