"""`fedserver gc`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import typer

from fedserver.commands.admin import is_running, reading
from fedserver.exit_codes import ExitCode, fail
from fedserver.store import State, StateError, retention
from fedserver.store.database import Database
from fedserver.store.errors import StateInUse
from fedserver.store.facts import KEEP_ROUNDS_FACT, fact
from fedserver.store.folder import is_state_directory
from fedserver.store.history import History
from fedserver.store.scores import best_versions

_BY_ITSELF = "a running server collects by itself after every round"


def collect(state: Path, keep_rounds: int | None, *, dry_run: bool) -> None:
    """Remove what falls out of the retention, and litter. A running server does so by itself, and keeps others out."""
    if dry_run:
        _preview(state, keep_rounds)
        return
    try:
        if not is_state_directory(state):
            raise fail(f"{state} is no state directory of a server; give its --state", ExitCode.BAD_STATE)
        opened = State(state)
        try:
            _collect(opened, keep_rounds)
        finally:
            opened.close()
    except StateInUse as error:
        raise fail(f"{error}; {_BY_ITSELF}", ExitCode.BAD_STATE) from error
    except StateError as error:
        raise fail(str(error), ExitCode.BAD_STATE) from error


def _preview(state: Path, keep_rounds: int | None) -> None:
    """Say what would go. The directory is only read: a look is not to convert it, nor to need the right to write."""
    if is_running(state):  # what is on its way to it would look like litter
        raise fail(f"{state} is in use by another fedserver; {_BY_ITSELF}", ExitCode.BAD_STATE)
    with reading(state) as reader:
        keep = _rounds_to_keep(reader.database, keep_rounds)
        expired = retention.expired(reader.database, keep, _best(reader.database))
        lost = retention.lost_models(reader.database, state)
        litter = [path for path in retention.orphans(reader.database, state) if path not in lost]
        _say("would remove", expired, litter, keep)
        for path in lost:
            typer.echo(f"would set aside {path}, which the database does not know")


def _collect(state: State, keep_rounds: int | None) -> None:
    keep = _rounds_to_keep(state.database, keep_rounds)
    _say("removed", state.collect(keep, _best(state.database)), state.sweep(), keep)


def _best(database: Database) -> set[int]:
    return best_versions(replace(record, contributions=()) for record in History(database))


def _rounds_to_keep(database: Database, keep_rounds: int | None) -> int:
    known = fact(database, KEEP_ROUNDS_FACT)
    if keep_rounds is None and known is None:
        words = "no server has run here yet that said how many rounds to keep: give --keep-rounds"
        raise fail(words, ExitCode.BAD_CONFIGURATION)
    return keep_rounds if keep_rounds is not None else int(known or 0)


def _say(verb: str, expired: retention.Expired, litter: Iterable[Path], keep: int) -> None:
    for number in expired.rounds:
        typer.echo(f"{verb} the updates of round {number}")
    for sha256 in expired.models:
        typer.echo(f"{verb} the file of model {sha256.hex()}")
    for path in litter:
        typer.echo(f"{verb} {path}, which nothing refers to")
    typer.echo(f"updates and models of the last {keep} rounds are kept, and the initial, the best and the last model")
