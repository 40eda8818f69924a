"""Commands of `fedserver` that work on what is stored: state directories, backups and model files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedserver import options
from fedserver.cli_words import class_folders, task_settings
from fedserver.options import DEFAULT_STATE, MOST_ROUNDS

stored = typer.Typer()


@stored.command()
def verify(
    number: Annotated[
        int | None, typer.Option("--round", help="This round and the chain only.", min=0, max=MOST_ROUNDS)
    ] = None,
    state: options.State = DEFAULT_STATE,
    as_json: options.AsJson = False,
) -> None:
    """Check what is stored: the ledger's chain, every file, and every aggregate by making it again.

    Works beside a running server and without one. Exit status 1 says that something differs, and the output says what.
    Note the hash it prints at the end: another one for the same round shows later that the ledger was changed.

    Example: fedserver verify --state runs/server/state
    """
    from fedserver.commands import verify as command

    raise typer.Exit(command.show_verdict(state, number, as_json=as_json))


@stored.command()
def gc(
    state: options.State = DEFAULT_STATE,
    keep_rounds: Annotated[
        int | None,
        typer.Option(help="Rounds whose updates and models stay. [default: as the server ran]", min=0, max=MOST_ROUNDS),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
) -> None:
    """Remove updates and models that fall out of the retention, and files that nothing refers to.

    A running server does this by itself after every round; then this command is refused.

    Example: fedserver gc --keep-rounds 3 --dry-run
    """
    from fedserver.commands import gc as command

    command.collect(state, keep_rounds, dry_run=dry_run)


@stored.command()
def backup(
    out: Annotated[Path, typer.Option(help="Folder or .tar file to make; it must not be there yet.")],
    state: options.State = DEFAULT_STATE,
) -> None:
    """Copy the state directory, as it is at one instant, also while a server runs on it.

    Example: fedserver backup --state runs/server/state --out backups/monday.tar
    """
    from fedserver.commands import backup as command

    command.make_backup(state, out)


@stored.command()
def restore(
    source: Annotated[Path, typer.Argument(help="What `fedserver backup` made.", metavar="BACKUP")],
    state: options.State = DEFAULT_STATE,
) -> None:
    """Make a state directory of a backup, after checking every byte. Nothing is ever overwritten.

    Example: fedserver restore backups/monday.tar --state runs/server/state
    """
    from fedserver.commands import backup as command

    command.restore_backup(source, state)


@stored.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("models"),
    number: Annotated[
        int | None, typer.Option("--round", help="Model of this round. [default: the last]", min=0, max=MOST_ROUNDS)
    ] = None,
    stem: Annotated[str | None, typer.Option(help="File name without its ending. [default: as `run` calls it]")] = None,
    state: options.State = DEFAULT_STATE,
    task: Annotated[
        str | None, typer.Option(help="Task name or module:Class. [default: the federation's, with its settings]")
    ] = None,
    task_set: options.TaskSet = None,
) -> None:
    """Write a round's global model for use without this project (for brain_mri: .keras and .h5).

    Works beside a running server and without one, for the rounds whose models are kept (`fedserver run --keep-rounds`).

    Example: fedserver export --round 5 --out models
    """
    from fedserver.commands import export as command

    command.export_model(state, out, number, stem, task, task_settings(task_set))


@stored.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file: .keras, .h5 or .weights.h5.")],
    holdout: Annotated[str, typer.Option(help="Folder <class>/*, or `phantom`.")],
    task: options.TaskName = "brain_mri",
    task_set: options.TaskSet = None,
    classes: options.Classes = None,
    as_json: options.AsJson = False,
) -> None:
    """Score one model file on a labelled folder. Needs no server and no state directory.

    A model that was made with other settings than the task's defaults needs them, as --task-set alpha=0.35.

    Example: fedserver evaluate runs/server/models/GLOBAL_MODEL_MOB.keras --holdout data/val
    """
    from fedserver.commands import offline

    settings, folders = task_settings(task_set), class_folders(classes)
    offline.evaluate_file(model, holdout, task, settings, folders, as_json=as_json)


@stored.command()
def aggregate(
    models: Annotated[list[Path], typer.Argument(help="Model files of the clients, in order of rank.")],
    out: Annotated[Path, typer.Option(help="Model file to write; its ending decides the format.")],
    strategy: options.StrategyName = "fedavg",
    examples: Annotated[
        str | None, typer.Option(help="Training examples of each model, such as 400,320; fedavg needs them.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="The model they started from, for the same bits.")] = None,
    holdout: Annotated[str | None, typer.Option(help="Score the result on this folder.")] = None,
    task: options.TaskName = "brain_mri",
    task_set: options.TaskSet = None,
    classes: options.Classes = None,
) -> None:
    """Aggregate model files of sites that can only send files.

    Example: fedserver aggregate client_0_model.h5 client_1_model.h5 --strategy rank_decay --holdout data/val
    --out GLOBAL_MODEL_MOB.h5
    """
    from fedserver.commands import offline

    settings, folders = task_settings(task_set), class_folders(classes)
    offline.aggregate_files(models, out, strategy, examples, base, holdout, task, settings, folders)
