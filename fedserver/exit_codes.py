"""What the commands' exit statuses mean. They are part of the interface: services act on them."""

from __future__ import annotations

import enum

import typer


class ExitCode(enum.IntEnum):
    """Exit status of every `fedserver` command."""

    FINISHED = 0
    """Done: the federation finished, or the command did its work."""

    FAILED = 1
    """The federation could not go on, made no model, or is over without all of its files; the message says why."""

    BAD_CONFIGURATION = 2
    """A setting, an argument or a file given is wrong; nothing was started."""

    BAD_STATE = 3
    """The state directory is in use, damaged or not writable."""

    NO_SERVER = 4
    """No server answers for the state directory given."""


def fail(message: str, code: ExitCode) -> typer.Exit:
    """Say what is wrong, and leave with the status that means it: `raise fail(...)`."""
    typer.echo(f"fedserver: {message}", err=True)
    return typer.Exit(code)
