"""`fedserver pause`, `resume` and `stop`."""

from __future__ import annotations

from pathlib import Path

import typer

from fedserver.commands.admin import CALL_SECONDS, administration
from fedstream.v1 import admin_pb2


def pause(state: Path) -> None:
    """Open no further round."""
    with administration(state) as stub:
        stub.Pause(admin_pb2.PauseRequest(), timeout=CALL_SECONDS)
    typer.echo("paused: no further round opens until `fedserver resume`")


def resume(state: Path) -> None:
    """Take a pause back."""
    with administration(state) as stub:
        stub.Resume(admin_pb2.ResumeRequest(), timeout=CALL_SECONDS)
    typer.echo("resumed")


def stop(state: Path, *, finish_round: bool) -> None:
    """End the federation."""
    with administration(state) as stub:
        stub.Stop(admin_pb2.StopRequest(finish_round=finish_round), timeout=CALL_SECONDS)
    first = "the round at work is finished, then " if finish_round else ""
    typer.echo(f"stopping: {first}the report is written, and the server ends")
