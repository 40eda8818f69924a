"""The `fedserver` command. Everything heavy is imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedserver.cli_stored import stored
from fedserver.cli_words import DEFAULT_STATE, MOST_ROUNDS, State, class_folders, task_settings
from fedserver.exit_codes import ExitCode, fail
from fedstream.command_line import LogLevel, make_app

if TYPE_CHECKING:
    from fedserver.config import ServerConfig

app = make_app("fedserver", "Coordinate a federation: sites train one model together, and no data leaves them.")


@app.command()
def init(
    state: State = DEFAULT_STATE,
    advertise: Annotated[
        list[str] | None, typer.Option(help="Name or address under which sites reach this server; repeatable.")
    ] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT for members.")] = "0.0.0.0:8443",
    enrol_listen: Annotated[str, typer.Option(help="HOST:PORT for joining. [default: the port after it]")] = "",
) -> None:
    """Make the federation's own certificate authority and the server's certificate. `run` does so too if need be.

    Example: fedserver init --state runs/server/state --advertise fl.example.org
    """
    from fedserver.commands.init import initialise

    initialise(state, listen, enrol_listen, advertise or [])


@app.command()
def run(
    config: Annotated[Path | None, typer.Option(help="TOML file; options given here go over it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the federation. [default: federation]")] = None,
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT. [default: as `init` says, else 127.0.0.1:8443]")
    ] = None,
    advertise: Annotated[
        list[str] | None, typer.Option(help="Name or address under which sites reach this server; repeatable.")
    ] = None,
    enrol_listen: Annotated[
        str | None, typer.Option(help="HOST:PORT where sites join. [default: the port after --listen]")
    ] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(help="Also let in sites with certificates of this authority (PEM); they need no invitation."),
    ] = None,
    certificate_days: Annotated[
        float | None, typer.Option(help="Validity of a site's certificate; it renews by itself. [default: 90]")
    ] = None,
    open_enrolment: Annotated[
        bool | None,
        typer.Option(
            "--open-enrolment",
            help="Ask for no certificates: whoever has the join command can join, under any name, also another site's.",
        ),
    ] = None,
    plaintext: Annotated[
        bool | None, typer.Option("--plaintext", help="No TLS and no certificates; loopback only.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task name or module:Class. [default: brain_mri]")] = None,
    task_set: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the task; repeatable.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds to run, failed ones included. [default: 10]")] = None,
    min_clients: Annotated[int | None, typer.Option(help="Clients a round needs. [default: 2]")] = None,
    cohort_size: Annotated[int | None, typer.Option(help="Clients to pick per round; 0 for all.")] = None,
    reporting_goal: Annotated[int | None, typer.Option(help="Updates that close a round; 0 for all.")] = None,
    round_timeout_seconds: Annotated[
        float | None, typer.Option(help="How long a round waits for updates. [default: 3600]")
    ] = None,
    longest_round_seconds: Annotated[
        float | None, typer.Option(help="What a counter-offer may ask for. [default: twice the timeout]")
    ] = None,
    lease_seconds: Annotated[
        float | None, typer.Option(help="Silence after which a client is given up. [default: 60]")
    ] = None,
    join_timeout_seconds: Annotated[
        float | None, typer.Option(help="How long to wait for enough clients. [default: 86400]")
    ] = None,
    retry_delay_seconds: Annotated[
        float | None,
        typer.Option(
            help="Before what failed, a round or a full disk, is tried again; doubled with each round that fails, up "
            "to 300. [default: 5]"
        ),
    ] = None,
    keep_rounds: Annotated[
        int | None, typer.Option(help="Rounds whose updates and models are kept. [default: 10]")
    ] = None,
    min_free_bytes: Annotated[
        int | None,
        typer.Option(
            help="Bytes that must stay free on the disk; no round is offered that may leave less. [268435456]"
        ),
    ] = None,
    max_connections: Annotated[
        int | None, typer.Option(help="On each port, of all sites together. [default: 4000]")
    ] = None,
    max_streams_per_connection: Annotated[
        int | None, typer.Option(help="Calls that one connection may have open. [default: 16]")
    ] = None,
    max_examples: Annotated[
        int | None,
        typer.Option(
            help="Training examples that a site may say it has; its weight goes by them. [default: 10 million]"
        ),
    ] = None,
    max_resent_bytes: Annotated[
        int | None, typer.Option(help="Bytes of one update that may come more than once. [default: 1073741824]")
    ] = None,
    handshake_timeout_seconds: Annotated[
        float | None, typer.Option(help="For TLS and HTTP/2 to be agreed on. [default: 20]")
    ] = None,
    message_timeout_seconds: Annotated[
        float | None,
        typer.Option(help="For a stream's first message, and between parts of a manifest. [default: 30]"),
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="fedavg, uniform or rank_decay. [default: fedavg]")] = None,
    update_encoding: Annotated[
        str | None,
        typer.Option(help="How updates travel: raw, zstd, bfloat16[+zstd] or int8[+zstd]. [default: raw]"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Local epochs at most. [default: the task's]")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples in one step of local training. [default: the task's]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Size of a step of local training, such as 0.0001. [default: the task's]")
    ] = None,
    early_stopping_patience: Annotated[
        int | None, typer.Option(help="Epochs without a better loss before a site stops; 0 for never. [the task's]")
    ] = None,
    early_stopping_rounds: Annotated[
        int | None, typer.Option(help="Rounds without a better holdout score before stopping; 0 for never.")
    ] = None,
    holdout: Annotated[
        str | None, typer.Option(help="Folder <class>/* to score every global model on, or `phantom`.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="Folder <class>/* that is looked at once, at the end.")] = None,
    classes: Annotated[
        list[str] | None, typer.Option(help="CLASS=FOLDER where the holdout's folders have other names.")
    ] = None,
    initial_model: Annotated[Path | None, typer.Option(help="Start from this model file.")] = None,
    backbone_weights: Annotated[
        str | None, typer.Option(help="Weights file to start from, `imagenet` to download, or `random`.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of cohort, initial head and plans. [default: 0]")] = None,
    state: Annotated[Path | None, typer.Option(help=f"State directory. [default: {DEFAULT_STATE}]")] = None,
    out: Annotated[Path | None, typer.Option(help="Where report and models go. [default: runs/server]")] = None,
    pictures: Annotated[
        bool | None,
        typer.Option("--pictures/--no-pictures", help="Draw the report's pictures, or leave its tables alone. [drawn]"),
    ] = None,
    log_json: Annotated[bool | None, typer.Option("--log-json/--log-text", help="[default: by terminal]")] = None,
    log_level: LogLevel = "info",
) -> None:
    """Run a federation to its end, then write report and models.

    Example: fedserver run --listen 0.0.0.0:8443 --holdout data/val --min-clients 3 --rounds 10
    """
    settings = _settings(locals())
    from fedserver.commands.run import run_server

    raise typer.Exit(asyncio.run(run_server(settings, log_json, log_level)))


def _settings(options: Mapping[str, Any]) -> ServerConfig:
    """What the options of a command, by their parameters' names, make of the file that one of them may name."""
    from fedserver.addresses import chosen
    from fedserver.config import ConfigError, PlanSettings, ServerConfig, load_config

    flags = {key: value for key, value in options.items() if key in ServerConfig.model_fields}
    flags["task_settings"] = task_settings(options["task_set"])
    flags["classes"] = class_folders(options["classes"])
    flags["plan"] = {key: options.get(key) for key in PlanSettings.model_fields}
    try:
        return load_config(options["config"], flags, chosen)
    except ConfigError as error:
        raise fail(str(error), ExitCode.BAD_CONFIGURATION) from error


@app.command()
def invite(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    valid_hours: Annotated[float | None, typer.Option(help="How long the token can be used. [default: 72]")] = None,
    state: State = DEFAULT_STATE,
) -> None:
    """Print a join token for one site, and the command that it is for. It can be used once, under this name.

    Works with and without a running server. An earlier token of the name that was not used is taken back.

    Example: fedserver invite site-a --valid-hours 24
    """
    from fedserver.commands import members

    members.invite(state, name, valid_hours)


@app.command()
def clients(
    state: State = DEFAULT_STATE,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the sites: invited, enrolled or revoked, until when, and when last seen. Needs no running server.

    Example: fedserver clients --state runs/server/state
    """
    from fedserver.commands import members

    members.show_clients(state, as_json=as_json)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    state: State = DEFAULT_STATE,
) -> None:
    """Keep a site out, at once: its certificates and invitations count no more, and its open calls end.

    `fedserver invite` with the same name lets it in again. Needs no running server.

    Example: fedserver revoke site-a
    """
    from fedserver.commands import members

    members.revoke(state, name)


@app.command()
def status(
    state: State = DEFAULT_STATE,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
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
    state: State = DEFAULT_STATE,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the rounds, or show one with what became of each client's offer. Works without a running server too.

    Example: fedserver rounds --round 3
    """
    from fedserver.commands import rounds as command

    command.show_rounds(state, number, as_json=as_json)


@app.command()
def pause(state: State = DEFAULT_STATE) -> None:
    """Open no further round until `fedserver resume`; the round at work goes on to its end.

    Sites stay connected and wait. A server that is started again is not paused.

    Example: fedserver pause --state runs/server/state
    """
    from fedserver.commands import steer

    steer.pause(state)


@app.command()
def resume(state: State = DEFAULT_STATE) -> None:
    """Take a pause back: the next round opens as soon as there are enough sites.

    Example: fedserver resume --state runs/server/state
    """
    from fedserver.commands import steer

    steer.resume(state)


@app.command()
def stop(
    state: State = DEFAULT_STATE,
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
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT. [default: as `init` says, else 127.0.0.1:8443]")
    ] = None,
    advertise: Annotated[list[str] | None, typer.Option(help="Name under which sites reach it; repeatable.")] = None,
    enrol_listen: Annotated[str | None, typer.Option(help="HOST:PORT where sites join. [the port after]")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="Authority (PEM) whose sites need no invitation.")] = None,
    open_enrolment: Annotated[bool | None, typer.Option("--open-enrolment", help="Ask for no certificates.")] = None,
    plaintext: Annotated[bool | None, typer.Option("--plaintext", help="No TLS; loopback only.")] = None,
    task: Annotated[str | None, typer.Option(help="Task name or module:Class. [default: brain_mri]")] = None,
    task_set: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the task; repeatable.")] = None,
    holdout: Annotated[str | None, typer.Option(help="Folder <class>/*, or `phantom`.")] = None,
    test: Annotated[str | None, typer.Option(help="Folder <class>/*, looked at once, at the end.")] = None,
    classes: Annotated[list[str] | None, typer.Option(help="CLASS=FOLDER; repeatable.")] = None,
    initial_model: Annotated[Path | None, typer.Option(help="Model file to start from.")] = None,
    backbone_weights: Annotated[str | None, typer.Option(help="Weights file, `imagenet` or `random`.")] = None,
    min_free_bytes: Annotated[int | None, typer.Option(help="Bytes that must stay free on the disk.")] = None,
    state: Annotated[Path | None, typer.Option(help=f"State directory. [default: {DEFAULT_STATE}]")] = None,
    out: Annotated[Path | None, typer.Option(help="Where report and models go. [default: runs/server]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
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
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
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
    strategy: Annotated[str, typer.Option(help="fedavg, uniform or rank_decay.")] = "fedavg",
    update_encoding: Annotated[str, typer.Option(help="raw, zstd, bfloat16[+zstd] or int8[+zstd].")] = "raw",
    epochs: Annotated[int | None, typer.Option(help="Local epochs at most. [default: the task's]")] = None,
    task_set: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the task; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
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
