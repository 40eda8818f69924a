"""How `fedclient` ends, as the number it gives back to the shell."""

from __future__ import annotations

import enum
from typing import NoReturn

import typer

from fedstream.errors import FedstreamError, ProtocolError


class ExitCode(enum.IntEnum):
    """Exit codes of `fedclient`; each member's `meaning` is what the documentation says of it."""

    FINISHED = 0
    DEFECT = 1
    BAD_CONFIGURATION = 2
    BAD_DATA = 3
    DECLINED = 4
    UNREACHABLE = 5
    UNTRUSTED = 6
    TRAINING_FAILED = 7
    REPLACED = 8
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """One line for people."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.FINISHED: "the federation finished and its final model is saved, or the site left as --max-rounds says",
    ExitCode.DEFECT: "an error that should not happen, in the client or in what it was told",
    ExitCode.BAD_CONFIGURATION: "an option or the configuration file is wrong",
    ExitCode.BAD_DATA: "the data folder, the task or a model file cannot be used",
    ExitCode.DECLINED: "the server declined this client; the message says why and what to change",
    ExitCode.UNREACHABLE: "the server could not be reached within --give-up-after",
    ExitCode.UNTRUSTED: "it is another server than was named, or it does not accept this site's token or certificate",
    ExitCode.TRAINING_FAILED: "local training failed several times in a row",
    ExitCode.REPLACED: "another client of the same name took over",
    ExitCode.HUNG_UP: "stopped by SIGHUP, as when its terminal is closed",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C",
    ExitCode.TERMINATED: "stopped by SIGTERM",
}


class Stop(FedstreamError):
    """The client is to end, for a reason that trying again would not change. The message is for the operator."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def message(self) -> str:
        """What happened and what to do."""
        return str(self.args[0])


def refused(error: ProtocolError) -> Stop:
    """The end of a client that the server does not take, be that said in a session or while weights travel.

    The server's words often say already what to do.
    """
    advice = "ask the coordinator"
    return Stop(ExitCode.UNTRUSTED, error.message if advice in error.message else f"{error.message}: {advice}")


def leave(stop: Stop) -> NoReturn:
    """Say why, and end with its status."""
    typer.echo(f"fedclient: {stop.message}", err=True)
    raise typer.Exit(stop.code)
