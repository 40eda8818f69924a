"""The `fedclient` command. Everything heavy is imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fedclient import looking, options
from fedclient.exit_codes import ExitCode, Stop, leave
from fedstream.command_line import LogLevel, make_app

_EPILOG = "Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in ExitCode) + "."

app = make_app(
    "fedclient", "Take part in a federation: your images train the shared model, and never leave this machine."
)


@app.command(epilog=_EPILOG)
def run(
    data: options.Data = None,
    identity: options.Identity = None,
    server: options.Server = None,
    name: options.Name = None,
    certificate: options.Certificate = None,
    key: options.Key = None,
    server_ca: options.ServerCa = None,
    fingerprint: options.Fingerprint = None,
    plaintext: options.Plaintext = None,
    classes: options.Classes = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Use part I, counted from 0, of N of the folder.")
    ] = None,
    division: Annotated[
        str | None, typer.Option(metavar="WAY", help="How parts are made: even, quantity, dirichlet:ALPHA. [even]")
    ] = None,
    division_seed: Annotated[int | None, typer.Option(help="Seed of that; the same at all clients. [0]")] = None,
    max_epochs: options.MaxEpochs = None,
    max_hours: options.MaxHours = None,
    max_rounds: options.MaxRounds = None,
    max_examples: options.MaxExamples = None,
    report: options.Report = None,
    out: options.Out = None,
    pictures: Annotated[
        bool | None,
        typer.Option("--pictures/--no-pictures", help="Draw the training history, or leave it as a table. [drawn]"),
    ] = None,
    state_dir: options.StateDir = None,
    task: options.Task = None,
    give_up_after: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="End after so long without the server. [never]")
    ] = None,
    config: options.Config = None,
    log_json: Annotated[bool | None, typer.Option("--log-json/--log-text", help="[JSON unless in a terminal]")] = None,
    log_level: LogLevel = "info",
) -> None:
    """Take part in the federation that was joined, until it ends.

    Example: fedclient run --data scans/

    Only weights, counts and metrics are sent. It reconnects by itself, and never repeats a finished training.
    """
    from fedclient.command import run_client
    from fedclient.config import ClientConfig, load_config

    flags = {key: value for key, value in locals().items() if key in ClientConfig.model_fields}
    try:
        typer.echo(run_client(load_config(config, flags), log_json, log_level))
    except Stop as stop:
        leave(stop)


@app.command()
def join(
    server: Annotated[
        str | None, typer.Argument(metavar="[HOST:PORT]", help="Address of the server. [as the token says]")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="The token from the coordinator; `-` to read it from standard input.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file with the token, or with all that `fedserver invite` printed."),
    ] = None,
    enrolment: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to join, if that is elsewhere than the token says.")
    ] = None,
    identity: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for this site's key. [~/.local/state/fedstream/identity]")
    ] = None,
) -> None:
    """Join a federation, once, with the token that its coordinator has sent.

    Example: fedclient join fl.example.org:8443 --token fsj1_...

    This site's private key is made here and never leaves this machine. If it breaks off, run it again with the same
    token. A token on the command line is seen by other users of this machine: `--token -` and `--token-file` are not.
    """
    from fedclient.command import join_federation

    try:
        typer.echo(join_federation(server, token, token_file, enrolment, identity))
    except Stop as stop:
        leave(stop)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Model file: .keras or .h5, such as GLOBAL_MODEL_MOB.h5.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
) -> None:
    """Say for each image which class a saved model sees in it, and how probable.

    Example: fedclient predict runs/site-a/GLOBAL_MODEL_MOB.keras scan1.jpg scans/
    """
    from fedclient.command import predict_images

    try:
        for line in predict_images(model, images):
            typer.echo(line)
    except Stop as stop:
        leave(stop)


@app.command()
def features(
    data: Annotated[str, typer.Option(metavar="DIR", help="Folder as for `run`; `phantom` to generate one.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to: FILE.safetensors and FILE.features.")],
    backbone_weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Backbone weights, or `random`. [ImageNet, from Keras]")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="CLASS=FOLDER,...", help="Folders that are called otherwise here.")
    ] = None,
    task_set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of brain_mri_head; repeatable.")
    ] = None,
) -> None:
    """Compute what the frozen backbone makes of your images, for a federation that learns brain_mri_head.

    Example: fedclient features --data scans/ --out scans.safetensors --backbone-weights mobilenet_v2.weights.h5

    Clients in any language train on these files; docs/brain_mri.md describes them.
    """
    from fedclient.features import make_features

    try:
        for line in make_features(data, classes, out, backbone_weights, task_set or []):
            typer.echo(line)
    except Stop as stop:
        leave(stop)


app.command()(looking.doctor)
app.command()(looking.preview)


def main() -> None:
    """Entry point."""
    from fedstream.output import open_output, told_if_refused

    # gRPC writes lines of its own, in its own form, about what is said here in words; whoever wants them asks for them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    open_output()
    with told_if_refused("fedclient"):
        app()


if __name__ == "__main__":
    main()
