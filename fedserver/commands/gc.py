"""`fedserver gc`."""

from __future__ import annotations

from pathlib import Path

import typer

from fedserver.exit_codes import ExitCode, fail
from fedserver.store import State, StateError, retention
from fedserver.store.errors import StateInUse
from fedserver.store.state import KEEP_ROUNDS_FACT, is_state_directory


def collect(state: Path, keep_rounds: int | None, *, dry_run: bool) -> None:
    """Remove what falls out of the retention, and litter. A running server does so by itself, and keeps others out."""
    try:
        if not is_state_directory(state):
            raise fail(f"{state} is no state directory of a server; give its --state", ExitCode.BAD_STATE)
        opened = State(state)
    except StateInUse as error:
        raise fail(f"{error}; a running server collects by itself after every round", ExitCode.BAD_STATE) from error
    except StateError as error:
        raise fail(str(error), ExitCode.BAD_STATE) from error
    try:
        _collect(opened, keep_rounds, dry_run=dry_run)
    except StateError as error:
        raise fail(str(error), ExitCode.BAD_STATE) from error
    finally:
        opened.close()


def _collect(state: State, keep_rounds: int | None, *, dry_run: bool) -> None:
    known = state.fact(KEEP_ROUNDS_FACT)
    keep = keep_rounds if keep_rounds is not None else int(known) if known is not None else None
    if keep is None:
        raise fail("no server has run here yet that said how many rounds to keep: give --keep-rounds", ExitCode.FAILED)
    best = retention.best_version(state.database)
    expired = retention.expired(state.database, keep, best) if dry_run else state.collect(keep, best)
    litter = retention.orphans(state.database, state.folder) if dry_run else state.sweep()
    verb = "would remove" if dry_run else "removed"
    for number in expired.rounds:
        typer.echo(f"{verb} the updates of round {number}")
    for sha256 in expired.models:
        typer.echo(f"{verb} the file of model {sha256.hex()}")
    for path in litter:
        typer.echo(f"{verb} {path}, which nothing refers to")
    typer.echo(f"updates and models of the last {keep} rounds are kept, and the initial, the best and the last model")
