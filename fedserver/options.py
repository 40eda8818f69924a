"""The options of `fedserver`'s commands: those that several have, and all that `run` can be told.

What `run` can be told may be left out, for what the file says or the default. `doctor` looks at some of it, and says of
most of that in fewer words what it is; these stand with the command, as do options that one command alone has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STATE = Path("runs/server/state")
MOST_ROUNDS = 1_000_000
"""As `fedserver.config` allows. Numbers far beyond fit neither the database nor the wire."""

# Of several commands: what they work on, and how they answer.

State = Annotated[Path, typer.Option(help="State directory of the server.", show_default=True)]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Site = Annotated[str, typer.Argument(help="Name of the site.")]
TaskName = Annotated[str, typer.Option(help="Task name or module:Class.")]
Classes = Annotated[list[str] | None, typer.Option(help="CLASS=FOLDER; repeatable.")]
StrategyName = Annotated[str, typer.Option(help="fedavg, uniform or rank_decay.")]

# What `run` can be told: where things are, and what is written.

Config = Annotated[Path | None, typer.Option(help="TOML file; options given here go over it.")]
Name = Annotated[str | None, typer.Option(help="Name of the federation. [default: federation]")]
StateDir = Annotated[Path | None, typer.Option(help=f"State directory. [default: {DEFAULT_STATE}]")]
Out = Annotated[Path | None, typer.Option(help="Where report and models go. [default: runs/server]")]
Pictures = Annotated[
    bool | None,
    typer.Option("--pictures/--no-pictures", help="Draw the report's pictures, or leave its tables alone. [drawn]"),
]
LogJson = Annotated[bool | None, typer.Option("--log-json/--log-text", help="[default: by terminal]")]

# Where sites reach the server, and which of them may.

Listen = Annotated[str | None, typer.Option(help="HOST:PORT. [default: as `init` says, else 127.0.0.1:8443]")]
Advertise = Annotated[
    list[str] | None, typer.Option(help="Name or address under which sites reach this server; repeatable.")
]
EnrolListen = Annotated[str | None, typer.Option(help="HOST:PORT where sites join. [default: the port after --listen]")]
MetricsListen = Annotated[
    str | None, typer.Option(help="HOST:PORT where Prometheus may read numbers, in plain HTTP. [default: nowhere]")
]
ClientCa = Annotated[
    Path | None,
    typer.Option(help="Also let in sites with certificates of this authority (PEM); they need no invitation."),
]
CertificateDays = Annotated[
    float | None,
    typer.Option(help="Validity of a site's certificate, 0.01 or more; renews by itself. [default: 90]"),
]
OpenEnrolment = Annotated[
    bool | None,
    typer.Option(
        "--open-enrolment",
        help="Ask for no certificates: whoever has the join command can join, under any name, also another site's.",
    ),
]
Plaintext = Annotated[bool | None, typer.Option("--plaintext", help="No TLS and no certificates; loopback only.")]

# What is learned, from what, and what it is scored on.

Task = Annotated[str | None, typer.Option(help="Task name or module:Class. [default: brain_mri]")]
TaskSet = Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the task; repeatable.")]
InitialModel = Annotated[Path | None, typer.Option(help="Start from this model file.")]
BackboneWeights = Annotated[
    str | None, typer.Option(help="Weights file to start from, `imagenet` to download, or `random`.")
]
Seed = Annotated[int | None, typer.Option(help="Of cohort, initial head and plans. [default: 0]")]
Holdout = Annotated[str | None, typer.Option(help="Folder <class>/* to score every global model on, or `phantom`.")]
Test = Annotated[str | None, typer.Option(help="Folder <class>/* that is looked at once, at the end.")]
HoldoutClasses = Annotated[
    list[str] | None, typer.Option(help="CLASS=FOLDER where the holdout's folders have other names.")
]

# How rounds go.

Rounds = Annotated[int | None, typer.Option(help="Rounds to run, failed ones included. [default: 10]")]
MinClients = Annotated[int | None, typer.Option(help="Clients a round needs. [default: 2]")]
CohortSize = Annotated[int | None, typer.Option(help="Clients to pick per round; 0 for all.")]
ReportingGoal = Annotated[int | None, typer.Option(help="Updates that close a round; 0 for all.")]
RoundTimeoutSeconds = Annotated[float | None, typer.Option(help="How long a round waits for updates. [default: 3600]")]
LongestRoundSeconds = Annotated[
    float | None, typer.Option(help="What a counter-offer may ask for. [default: twice the timeout]")
]
LeaseSeconds = Annotated[float | None, typer.Option(help="Silence after which a client is given up. [default: 60]")]
JoinTimeoutSeconds = Annotated[float | None, typer.Option(help="How long to wait for enough clients. [default: 86400]")]
RetryDelaySeconds = Annotated[
    float | None,
    typer.Option(
        help="Before what failed, a round or a full disk, is tried again; doubled with each round that fails, up "
        "to 300. [default: 5]"
    ),
]
EarlyStoppingRounds = Annotated[
    int | None, typer.Option(help="Rounds without a better holdout score before stopping; 0 for never.")
]
Strategy = Annotated[str | None, typer.Option(help="fedavg, uniform or rank_decay. [default: fedavg]")]
UpdateEncoding = Annotated[
    str | None,
    typer.Option(help="How updates travel: raw, zstd, bfloat16[+zstd] or int8[+zstd]. [default: raw]"),
]

# What sites are asked for in a round.

Epochs = Annotated[int | None, typer.Option(help="Local epochs at most. [default: the task's]")]
BatchSize = Annotated[int | None, typer.Option(help="Examples in one step of local training. [default: the task's]")]
LearningRate = Annotated[
    float | None, typer.Option(help="Size of a step of local training, such as 0.0001. [default: the task's]")
]
EarlyStoppingPatience = Annotated[
    int | None, typer.Option(help="Epochs without a better loss before a site stops; 0 for never. [the task's]")
]

# What is kept, and bounds.

KeepRounds = Annotated[int | None, typer.Option(help="Rounds whose updates and models are kept. [default: 10]")]
MinFreeBytes = Annotated[
    int | None,
    typer.Option(help="Bytes that must stay free on the disk; no round is offered that may leave less. [268435456]"),
]
MaxConnections = Annotated[int | None, typer.Option(help="On each port, of all sites together. [default: 4000]")]
MaxStreamsPerConnection = Annotated[
    int | None, typer.Option(help="Calls that one connection may have open. [default: 16]")
]
MaxExamples = Annotated[
    int | None,
    typer.Option(help="Training examples that a site may say it has; its weight goes by them. [default: 10 million]"),
]
MaxResentBytes = Annotated[
    int | None, typer.Option(help="Bytes of one update that may come more than once. [default: 1073741824]")
]
HandshakeTimeoutSeconds = Annotated[
    float | None, typer.Option(help="For TLS and HTTP/2 to be agreed on. [default: 20]")
]
MessageTimeoutSeconds = Annotated[
    float | None,
    typer.Option(help="For a stream's first message, and between parts of a manifest. [default: 30]"),
]
