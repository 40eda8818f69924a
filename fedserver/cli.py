"""The `fedserver` command. Everything heavy is imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedserver import options
from fedserver.cli_stored import stored
from fedserver.cli_words import class_folders, task_settings
from fedserver.exit_codes import ExitCode, fail
from fedserver.options import DEFAULT_STATE, MOST_ROUNDS
from fedstream.command_line import LogLevel, make_app

if TYPE_CHECKING:
    from fedserver.config import ServerConfig

app = make_app("fedserver", "Coordinate a federation: sites train one model together, and no data leaves them.")


@app.command()
def init(
    state: options.State = DEFAULT_STATE,
    advertise: options.Advertise = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT for members. [default: 0.0.0.0:8443]")] = None,
    enrol_listen: Annotated[
        str | None, typer.Option(help="HOST:PORT for joining. [default: the port after it]")
    ] = None,
) -> None:
    """Make the federation's own certificate authority and the server's certificate. `run` does so too if need be.

    Where it was done before, what is there stays, and so does what it was told and is not told otherwise now.

    Example: fedserver init --state runs/server/state --advertise fl.example.org
    """
    from fedserver.commands.init import initialise

    initialise(state, listen, enrol_listen, advertise or None)


@app.command()
def run(
    config: options.Config = None,
    name: options.Name = None,
    listen: options.Listen = None,
    advertise: options.Advertise = None,
    enrol_listen: options.EnrolListen = None,
    metrics_listen: options.MetricsListen = None,
    client_ca: options.ClientCa = None,
    certificate_days: options.CertificateDays = None,
    open_enrolment: options.OpenEnrolment = None,
    plaintext: options.Plaintext = None,
    task: options.Task = None,
    task_set: options.TaskSet = None,
    rounds: options.Rounds = None,
    min_clients: options.MinClients = None,
    cohort_size: options.CohortSize = None,
    reporting_goal: options.ReportingGoal = None,
    round_timeout_seconds: options.RoundTimeoutSeconds = None,
    longest_round_seconds: options.LongestRoundSeconds = None,
    lease_seconds: options.LeaseSeconds = None,
    join_timeout_seconds: options.JoinTimeoutSeconds = None,
    retry_delay_seconds: options.RetryDelaySeconds = None,
    keep_rounds: options.KeepRounds = None,
    min_free_bytes: options.MinFreeBytes = None,
    max_connections: options.MaxConnections = None,
    max_streams_per_connection: options.MaxStreamsPerConnection = None,
    max_examples: options.MaxExamples = None,
    max_resent_bytes: options.MaxResentBytes = None,
    handshake_timeout_seconds: options.HandshakeTimeoutSeconds = None,
    message_timeout_seconds: options.MessageTimeoutSeconds = None,
    strategy: options.Strategy = None,
    update_encoding: options.UpdateEncoding = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    early_stopping_patience: options.EarlyStoppingPatience = None,
    early_stopping_rounds: options.EarlyStoppingRounds = None,
    holdout: options.Holdout = None,
    test: options.Test = None,
    classes: options.HoldoutClasses = None,
    initial_model: options.InitialModel = None,
    backbone_weights: options.BackboneWeights = None,
    seed: options.Seed = None,
    state: options.StateDir = None,
    out: options.Out = None,
    pictures: options.Pictures = None,
    log_json: options.LogJson = None,
    log_level: LogLevel = "info",
) -> None:
    """Run a federation to its end, then write report and models.

    Example: fedserver run --listen 0.0.0.0:8443 --holdout data/val --min-clients 3 --rounds 10
    """
    settings = _settings(locals())
    from fedserver.commands.run import run_server

    raise typer.Exit(asyncio.run(run_server(settings, log_json, log_level)))


def _settings(given: Mapping[str, Any]) -> ServerConfig:
    """What the options of a command, by their parameters' names, make of the file that one of them may name."""
    from fedserver.addresses import chosen
    from fedserver.config import ConfigError, PlanSettings, ServerConfig, load_config

    flags = {key: value for key, value in given.items() if key in ServerConfig.model_fields}
    flags["task_settings"] = task_settings(given["task_set"])
    flags["classes"] = class_folders(given["classes"])
    flags["plan"] = {key: given.get(key) for key in PlanSettings.model_fields}
    try:
        return load_config(given["config"], flags, chosen)
    except ConfigError as error:
        raise fail(str(error), ExitCode.BAD_CONFIGURATION) from error


@app.command()
def invite(
    name: options.Site,
    valid_hours: Annotated[float | None, typer.Option(help="How long the token can be used. [default: 72]")] = None,
    state: options.State = DEFAULT_STATE,
) -> None:
    """Print a join token for one site, and the command that it is for. It can be used once, under this name.

    Works with and without a running server. An earlier token of the name that was not used is taken back.

    Example: fedserver invite site-a --valid-hours 24
    """
    from fedserver.commands import members

    members.invite(state, name, valid_hours)


@app.command()
def clients(
    state: options.State = DEFAULT_STATE,
    as_json: options.AsJson = False,
) -> None:
    """List the sites: invited, enrolled or revoked, until when, and when last seen. Needs no running server.

    Uninvited are sites that came with a certificate of --client-ca, or to a server that asked for none.

    Example: fedserver clients --state runs/server/state
    """
    from fedserver.commands import members

    members.show_clients(state, as_json=as_json)


@app.command()
def revoke(
    name: options.Site,
    state: options.State = DEFAULT_STATE,
) -> None:
    """Keep a site out, at once: its certificates and invitations count no more, and its open calls end.

    `fedserver invite` with the same name lets it in again, by a token: a certificate of --client-ca stays refused.
    Needs no running server.

    Example: fedserver revoke site-a
    """
    from fedserver.commands import members

    members.revoke(state, name)


@app.command()
def status(
    state: options.State = DEFAULT_STATE,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until Ctrl-C.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what the federation does, what it waits for and since when, and where each client is.

    The exit status is 4 where no server runs, also after a federation that ended well.

    Example: fedserver status --watch
    """
    from fedserver.commands import status as command

    command.show_status(state, watch=watch, as_json=as_json)


@app.command()
def rounds(
    number: Annotated[
        int | None, typer.Option("--round", help="One round, with each client's part.", min=0, max=MOST_ROUNDS)
    ] = None,
    state: options.State = DEFAULT_STATE,
    as_json: options.AsJson = False,
) -> None:
    """List the rounds, or show one with what became of each client's offer. Works without a running server too.

    Example: fedserver rounds --round 3
    """
    from fedserver.commands import rounds as command

    command.show_rounds(state, number, as_json=as_json)


@app.command()
def pause(state: options.State = DEFAULT_STATE) -> None:
    """Open no further round until `fedserver resume`; the round at work goes on to its end.

    Sites stay connected and wait. A server that is started again is not paused.

    Example: fedserver pause --state runs/server/state
    """
    from fedserver.commands import steer

    steer.pause(state)


@app.command()
def resume(state: options.State = DEFAULT_STATE) -> None:
    """Take a pause back: the next round opens as soon as there are enough sites.

    Example: fedserver resume --state runs/server/state
    """
    from fedserver.commands import steer

    steer.resume(state)


@app.command()
def stop(
    state: options.State = DEFAULT_STATE,
    finish_round: Annotated[
        bool, typer.Option("--finish-round", help="Wait for the round at work, and lose nothing.")
    ] = False,
) -> None:
    """End the federation: report and models are written, and every client hears the outcome.

    Without --finish-round, the round at work ends at once: what sites are still training in it is lost. Updates that
    are in make a model, if they are as many as a round needs.

    Example: fedserver stop --finish-round
    """
    from fedserver.commands import steer

    steer.stop(state, finish_round=finish_round)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option(help="The TOML file of `fedserver run`; options go over it.")] = None,
    listen: options.Listen = None,
    advertise: Annotated[list[str] | None, typer.Option(help="Name under which sites reach it; repeatable.")] = None,
    enrol_listen: Annotated[str | None, typer.Option(help="HOST:PORT where sites join. [the port after]")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="HOST:PORT where Prometheus may read numbers.")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="Authority (PEM) whose sites need no invitation.")] = None,
    open_enrolment: Annotated[bool | None, typer.Option("--open-enrolment", help="Ask for no certificates.")] = None,
    plaintext: Annotated[bool | None, typer.Option("--plaintext", help="No TLS; loopback only.")] = None,
    task: options.Task = None,
    task_set: options.TaskSet = None,
    holdout: Annotated[str | None, typer.Option(help="Folder <class>/*, or `phantom`.")] = None,
    test: Annotated[str | None, typer.Option(help="Folder <class>/*, looked at once, at the end.")] = None,
    classes: options.Classes = None,
    initial_model: Annotated[Path | None, typer.Option(help="Model file to start from.")] = None,
    backbone_weights: Annotated[str | None, typer.Option(help="Weights file, `imagenet` or `random`.")] = None,
    min_free_bytes: Annotated[int | None, typer.Option(help="Bytes that must stay free on the disk.")] = None,
    state: options.StateDir = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Check whether a server could run with these settings, and say what to do where it could not.

    Takes those options of `fedserver run` that it looks at, and its TOML file. Works beside a running server too, and
    writes nothing. The exit status is 0 if nothing failed, and else the one with which `fedserver run` would end.

    Example: fedserver doctor --config /etc/fedstream/server.toml
    """
    settings = _settings(locals())
    from fedserver.doctor.checkup import run_doctor

    raise typer.Exit(run_doctor(settings, typer.echo, as_json=as_json))


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="{server}, {name}, {data}, {state} and {out} stand for what a scene gives the client, and so do {token} and "
    "{identity} in --join and --member.",
)
def conformance(
    command: Annotated[
        list[str] | None, typer.Argument(help="How the client is started, over plain text and by itself to its end.")
    ] = None,
    limited: Annotated[
        str,
        typer.Option(help="Further words that limit it to one epoch a round, such as '--max-epochs 1'."),
    ] = "",
    join: Annotated[
        str,
        typer.Option(help="How it joins, such as 'CLIENT join --token {token} --identity {identity}'."),
    ] = "",
    member: Annotated[
        str, typer.Option(help="How it is started then, such as 'CLIENT run --identity {identity} --data {data} ...'.")
    ] = "",
    task: Annotated[str, typer.Option(help="What is trained: brain_mri_head, or linear with its default settings.")] = (
        "brain_mri_head"
    ),
    only: Annotated[list[str] | None, typer.Option(help="Scenes whose name has this in it; repeatable.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep transcripts and the client's words in. [default: not kept]")
    ] = None,
    lanes: Annotated[int, typer.Option(help="Scenes at a time.", min=1, max=64)] = 4,
    as_json: options.AsJson = False,
    show: Annotated[bool, typer.Option("--list", help="Name the scenes, and play none.")] = False,
) -> None:
    """Try whether a client, in any language, keeps to docs/protocol.md: plays scenes with it, and judges rule by rule.

    Example: fedserver conformance --limited '--max-epochs 1' -- fedclient run --server {server} --plaintext
    --name {name} --data {data} --state-dir {state} --out {out}

    The exit status is 0 if every rule that obliges a client was kept, and 1 if not.
    """
    from fedserver.commands import conformance as work

    if show:
        work.list_scenes()
    elif not command:
        raise fail("say after -- how the client is started; --help has an example", ExitCode.BAD_CONFIGURATION)
    else:
        raise typer.Exit(work.try_client(command, limited, join, member, task, only or [], out, lanes, as_json=as_json))


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Folder with train/ and val/. [default: the phantom]")] = None,
    backbone_weights: Annotated[
        str | None, typer.Option(help="Weights file. [default: random on the phantom, else ImageNet's by download]")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(help="Sites, each a process of its own. [default: 4, on the phantom 3]", min=1)
    ] = None,
    rounds_: Annotated[int | None, typer.Option("--rounds", help="[default: 10, on the phantom 5]")] = None,
    division: Annotated[
        str | None,
        typer.Option(help="even, quantity or dirichlet:ALPHA. [default: dirichlet:0.5, on the phantom even]"),
    ] = None,
    strategy: options.StrategyName = "fedavg",
    update_encoding: Annotated[str, typer.Option(help="raw, zstd, bfloat16[+zstd] or int8[+zstd].")] = "raw",
    epochs: options.Epochs = None,
    task_set: options.TaskSet = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    out: Annotated[Path, typer.Option(help="Where everything goes; an earlier demo there is replaced.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Try it on this machine: a server and several sites as separate processes, with TLS, to the report.

    Example: fedserver demo --data data --clients 4 --rounds 10
    """
    from fedserver.commands.demo import DemoPlan, run_demo

    plan = DemoPlan(
        data=data,
        backbone_weights=backbone_weights,
        clients=clients,
        rounds=rounds_,
        division=division,
        strategy=strategy,
        update_encoding=update_encoding,
        epochs=epochs,
        task_settings=task_settings(task_set),
        seed=seed,
        out=out,
    )
    run_demo(plan)


app.add_typer(stored)  # without a name: its commands stand beside the others


def main() -> None:
    """Entry point."""
    from fedstream.logs import configure_logs
    from fedstream.output import open_output, told_if_refused

    open_output()
    configure_logs(level="warning")  # commands speak for themselves; `run` sets up its own
    with told_if_refused("fedserver"):
        app()


if __name__ == "__main__":
    main()
