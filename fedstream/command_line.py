"""What the commands `fedserver` and `fedclient` have in common as programs of a command line."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], typer.Option(case_sensitive=False, help="What is worth a line.")
]


def make_app(name: str, purpose: str) -> typer.Typer:
    """A command that has commands of its own and `--version`; `purpose` is the first line of its `--help`."""
    app = typer.Typer(
        name=name,
        help=purpose,
        no_args_is_help=True,
        rich_markup_mode=None,  # rich takes longer to import than all the rest of --help
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    return app


def _show_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"{context.command.name} {metadata.version('fedstream')}")
        raise typer.Exit


def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    pass
