"""`fedserver backup` and `fedserver restore`."""

from __future__ import annotations

from pathlib import Path

import typer

from fedserver.exit_codes import ExitCode, fail
from fedserver.store import DamagedFile, StateError
from fedserver.store.backup import BackupError, Contents, WrongBackup, back_up
from fedserver.store.restore import restore
from fedstream.sizes import size

_KEY_NOTE = (
    "It holds the private keys of the server and of its authority: whoever has them can pass for this server "
    "and for any site. Keep it readable by you only."
)


_SINCE_THEN = (
    "What came after the backup is undone: sites that were revoked since are let in again, and tokens that were used "
    "since work once more. Where the old state's audit.jsonl is left, it names them; revoke those sites again."
)


def make_backup(state: Path, out: Path) -> None:
    """Copy a state directory, also one that a server is at work on."""
    try:
        contents = back_up(state, out)
    except (StateError, DamagedFile) as error:
        raise fail(str(error), ExitCode.BAD_STATE) from error
    except BackupError as error:
        raise fail(str(error), _status_of(error)) from error
    typer.echo(f"backed up {_contents(contents)} to {out}")
    if contents.has_key:
        typer.echo(_KEY_NOTE)


def restore_backup(backup: Path, state: Path) -> None:
    """Make a state directory of a backup."""
    try:
        contents = restore(backup, state)
    except BackupError as error:
        raise fail(str(error), _status_of(error)) from error
    go_on = f"go on with `fedserver run --state {state}`"
    typer.echo(f"restored {_contents(contents)} to {state}, every byte checked; {go_on}")
    if contents.has_key:
        typer.echo("The private keys are among them: sites know this server again, and their certificates go on.")
    typer.echo(_SINCE_THEN)


def _status_of(error: BackupError) -> ExitCode:
    return ExitCode.BAD_CONFIGURATION if isinstance(error, WrongBackup) else ExitCode.FAILED


def _contents(contents: Contents) -> str:
    return f"{len(contents.files)} files ({size(contents.size_bytes)})"
