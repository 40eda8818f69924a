"""The commands that look before anything is done. As in `fedclient.cli`, nothing heavy is imported above."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fedclient.exit_codes import ExitCode, Stop

Server = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Address of the server. [as joined]")]
Identity = Annotated[
    Path | None, typer.Option(metavar="DIR", help="What `fedclient join` made. [~/.local/state/fedstream/identity]")
]
Certificate = Annotated[
    Path | None, typer.Option(metavar="FILE", help="PEM of a certificate of your own authority, instead of joining.")
]
Key = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM of its private key.")]
ServerCa = Annotated[
    Path | None, typer.Option(metavar="FILE", help="PEM of the authority that signed the server's certificate.")
]
Fingerprint = Annotated[
    str | None, typer.Option(metavar="SHA256:HEX", help="Only for a server with --open-enrolment: its fingerprint.")
]
Plaintext = Annotated[bool | None, typer.Option("--plaintext", help="No TLS; only for a server on this machine.")]
Name = Annotated[str | None, typer.Option(help="This site's name. [as joined, or as its certificate says]")]
Data = Annotated[
    str | None, typer.Option(metavar="DIR", help="Folder with train/CLASS/; `phantom` for generated data.")
]
Classes = Annotated[
    str | None, typer.Option(metavar="CLASS=FOLDER,...", help="Folders that are called otherwise here.")
]
Out = Annotated[Path | None, typer.Option(help="Folder for models and plots. [runs/NAME]")]
StateDir = Annotated[Path | None, typer.Option(help="Folder for what must survive a restart.")]
Task = Annotated[str | None, typer.Option(metavar="MODULE:CLASS", help="Your own task class, if you use one.")]
Config = Annotated[Path | None, typer.Option(help="The TOML file of `fedclient run`; options win over it.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def doctor(
    server: Server = None,
    identity: Identity = None,
    certificate: Certificate = None,
    key: Key = None,
    server_ca: ServerCa = None,
    fingerprint: Fingerprint = None,
    plaintext: Plaintext = None,
    name: Name = None,
    data: Data = None,
    classes: Classes = None,
    out: Out = None,
    state_dir: StateDir = None,
    task: Task = None,
    config: Config = None,
    model: Annotated[
        bool, typer.Option("--model", help="Build the model too, in some seconds, and compare its tensors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check whether this site could take part, and say what to do where it could not.

    Takes the options of `fedclient run`. The exit status is 0 if nothing failed, and else the one with which `fedclient
    run` would end. The server is asked what it learns, and is told nothing.

    Example: fedclient doctor --data scans/
    """
    flags = _settings(locals())
    from fedclient.config import load_config
    from fedclient.doctor.checkup import run_doctor

    try:
        settings = load_config(config, flags)
    except Stop as stop:
        _fail(stop)
    _quiet()
    raise typer.Exit(run_doctor(settings, typer.echo, model=model, as_json=as_json))


def preview(
    server: Server = None,
    identity: Identity = None,
    certificate: Certificate = None,
    key: Key = None,
    server_ca: ServerCa = None,
    fingerprint: Fingerprint = None,
    plaintext: Plaintext = None,
    name: Name = None,
    data: Data = None,
    classes: Classes = None,
    max_epochs: Annotated[int | None, typer.Option(help="Most epochs per round.")] = None,
    max_hours: Annotated[float | None, typer.Option(help="Most hours of training per round.")] = None,
    max_rounds: Annotated[int | None, typer.Option(help="Most rounds.")] = None,
    max_examples: Annotated[int | None, typer.Option(help="Most examples.")] = None,
    report: Annotated[str | None, typer.Option(metavar="NAME,...", help="Metrics that may leave.")] = None,
    state_dir: StateDir = None,
    task: Annotated[
        str | None, typer.Option(help="The task, where no server is asked; or your own task class.")
    ] = None,
    task_set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Setting of that task; repeatable.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show what would leave this machine, and what would not, before anything does.

    Reads the data and builds the model as `fedclient run` does, and makes the same messages, but sends none. A server
    that is named is asked what it learns; without one, name the task.

    Example: fedclient preview --task brain_mri --data scans/ --max-epochs 5 --report none
    """
    flags = _settings(locals())
    from fedclient.config import load_config
    from fedclient.preview.command import NOWHERE, run_preview

    _quiet()
    try:
        settings = load_config(config, flags, without_server=NOWHERE)
        run_preview(settings, _task_settings(task_set), typer.echo, as_json=as_json)
    except Stop as stop:
        _fail(stop)


def _task_settings(words: list[str] | None) -> dict[str, str]:
    from fedtask.settings import read_pairs

    try:
        return read_pairs(words or [])
    except ValueError as error:
        raise Stop(ExitCode.BAD_CONFIGURATION, str(error)) from error


_NO_SETTINGS = frozenset({"config", "model", "as_json", "task_set"})
"""Parameters that are no settings of a site."""


def _settings(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if key not in _NO_SETTINGS}


def _quiet() -> None:
    from fedstream.logs import configure_logs

    configure_logs(level="error")  # what these commands find, they say themselves


def _fail(stop: Stop) -> NoReturn:
    typer.echo(f"fedclient: {stop.message}", err=True)
    raise typer.Exit(stop.code)
