"""The options of `fedclient`'s commands, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Server = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Address of the server. [as joined]")]
Identity = Annotated[
    Path | None, typer.Option(metavar="DIR", help="What `fedclient join` made. [~/.local/state/fedstream/identity]")
]
Name = Annotated[str | None, typer.Option(help="This site's name. [as joined, or as its certificate says]")]
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
Data = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder with train/CLASS/ and perhaps val/CLASS/; `phantom` to generate one."),
]
Classes = Annotated[
    str | None, typer.Option(metavar="CLASS=FOLDER,...", help="Folders that are called otherwise here.")
]
MaxEpochs = Annotated[int | None, typer.Option(help="Most epochs per round allowed here. [no limit]")]
MaxHours = Annotated[float | None, typer.Option(help="Most hours of training per round. [no limit]")]
MaxRounds = Annotated[int | None, typer.Option(help="Leave after updates of so many rounds. [no limit]")]
MaxExamples = Annotated[
    int | None, typer.Option(help="Train on at most so many examples, always the same ones. [no limit]")
]
Report = Annotated[
    str | None, typer.Option(metavar="NAME,...", help="Metrics that may leave: all, none, or their names. [all]")
]
Out = Annotated[Path | None, typer.Option(help="Folder for models and plots. [runs/NAME]")]
StateDir = Annotated[
    Path | None, typer.Option(help="Folder for what must survive a restart. [~/.local/state/fedstream/...]")
]
Task = Annotated[
    str | None, typer.Option(metavar="MODULE:CLASS", help="Your own task class, where the federation uses one.")
]
Config = Annotated[Path | None, typer.Option(help="TOML file with the settings of `run`; options win over it.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
