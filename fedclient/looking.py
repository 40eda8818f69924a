"""The commands that look before anything is done. As in `fedclient.cli`, nothing heavy is imported above."""

from __future__ import annotations

from typing import Annotated

import typer

from fedclient import options
from fedclient.exit_codes import ExitCode, Stop, leave


def doctor(
    server: options.Server = None,
    identity: options.Identity = None,
    certificate: options.Certificate = None,
    key: options.Key = None,
    server_ca: options.ServerCa = None,
    fingerprint: options.Fingerprint = None,
    plaintext: options.Plaintext = None,
    name: options.Name = None,
    data: options.Data = None,
    classes: options.Classes = None,
    out: options.Out = None,
    state_dir: options.StateDir = None,
    task: options.Task = None,
    config: options.Config = None,
    model: Annotated[
        bool, typer.Option("--model", help="Build the model too, in some seconds, and compare its tensors.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Check whether this site could take part, and say what to do where it could not.

    Takes those options of `fedclient run` that it looks at, and its TOML file. The exit status is 0 if nothing failed,
    and else the one with which `fedclient run` would end. The server is asked what it learns, and is told nothing.

    Example: fedclient doctor --data scans/
    """
    from fedclient.config import ClientConfig, load_config
    from fedclient.doctor.checkup import run_doctor

    flags = {key: value for key, value in locals().items() if key in ClientConfig.model_fields}
    try:
        settings = load_config(config, flags)
    except Stop as stop:
        leave(stop)
    _quiet()
    raise typer.Exit(run_doctor(settings, typer.echo, model=model, as_json=as_json))


def preview(
    server: options.Server = None,
    identity: options.Identity = None,
    certificate: options.Certificate = None,
    key: options.Key = None,
    server_ca: options.ServerCa = None,
    fingerprint: options.Fingerprint = None,
    plaintext: options.Plaintext = None,
    name: options.Name = None,
    data: options.Data = None,
    classes: options.Classes = None,
    max_epochs: options.MaxEpochs = None,
    max_hours: options.MaxHours = None,
    max_rounds: options.MaxRounds = None,
    max_examples: options.MaxExamples = None,
    report: options.Report = None,
    state_dir: options.StateDir = None,
    task: Annotated[
        str | None, typer.Option(help="The task, where no server is asked; or your own task class.")
    ] = None,
    task_set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Setting of that task; repeatable.")
    ] = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what would leave this machine, and what would not, before anything does.

    Reads the data and builds the model as `fedclient run` does, and makes the same messages, but sends none. A server
    that is named is asked what it learns; without one, name the task.

    Example: fedclient preview --task brain_mri --data scans/ --max-epochs 5 --report none
    """
    from fedclient.config import ClientConfig, load_config
    from fedclient.preview.command import NOWHERE, run_preview

    flags = {key: value for key, value in locals().items() if key in ClientConfig.model_fields}
    _quiet()
    try:
        settings = load_config(config, flags, without_server=NOWHERE)
        run_preview(settings, _task_settings(task_set), typer.echo, as_json=as_json)
    except Stop as stop:
        leave(stop)


def _task_settings(words: list[str] | None) -> dict[str, str]:
    from fedtask.settings import read_pairs

    try:
        return read_pairs(words or [])
    except ValueError as error:
        raise Stop(ExitCode.BAD_CONFIGURATION, str(error)) from error


def _quiet() -> None:
    from fedstream.logs import configure_logs

    configure_logs(level="error")  # what these commands find, they say themselves
