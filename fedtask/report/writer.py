"""Makes the files of a report: pictures if they are wanted, then the page, the summary and the event file."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from fedstream.sizes import size
from fedtask.adapters import adapter
from fedtask.report import tables, tensorboard, words
from fedtask.report.record import FederationRecord, headline_evaluation, record_from_json, record_to_json
from fedtask.task import Evaluation


def write_report(record: FederationRecord, folder: Path, *, pictures: bool) -> list[Path]:
    """See `fedtask.report.render`."""
    # As a program reads it from JSON: what is not a finite number is gone, in the page as in the summary.
    record = record_from_json(record_to_json(record))
    folder.mkdir(parents=True, exist_ok=True)
    # Made beside their place and moved there, so that nobody ever opens half a report.
    with _new_folder(folder / ".new") as new:
        embedded = _draw(record, new) if pictures else {}
        (new / "tensorboard").mkdir()
        events = tensorboard.event_file(tensorboard.scalar_events(record), record.started.timestamp())
        (new / "tensorboard" / tensorboard.FILE_NAME).write_bytes(events)
        (new / "report.html").write_text(page(record, embedded), encoding="utf-8")
        (new / "summary.json").write_bytes(summary_file(record))
        return _move(new, folder)


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """An empty folder of that name, gone with the block. One that a killed process has left there is cleared away."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _move(new: Path, folder: Path) -> list[Path]:
    """Move every file of `new` to its place in `folder`, the page and the summary last; the places."""
    made = sorted((path for path in new.rglob("*") if path.is_file()), key=lambda path: (path.suffix != ".png", path))
    places = [folder / path.relative_to(new) for path in made]
    for path, place in zip(made, places, strict=True):
        place.parent.mkdir(exist_ok=True)
        path.replace(place)
    return places


def _draw(record: FederationRecord, folder: Path) -> dict[str, dict[str, str]]:
    """Draw what there is to show, and return each picture as an `<img>` needs it: its bytes as a data address, and what
    it shows."""
    from fedtask.report.gallery import pictures_of  # matplotlib takes a second to load

    embedded: dict[str, dict[str, str]] = {}
    for picture in pictures_of(record):
        path = folder / f"{picture.name}.png"
        picture.draw(path)
        address = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        embedded[picture.name] = {"address": address, "description": picture.description}
    return embedded


def page(record: FederationRecord, embedded: dict[str, dict[str, str]]) -> str:
    """The whole report as one HTML page that needs nothing from outside. Text of the record is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(
            {
                name: resources.files("fedtask.report").joinpath(name).read_text("utf-8")
                for name in ("report.html.j2", "report.css")
            }
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    evaluation, measured_on = headline_evaluation(record)
    shown = _shown_evaluations(record)
    scored = [evaluation for _, evaluation in shown]
    return environment.get_template("report.html.j2").render(
        record=record,
        size=size,
        words=words,
        evaluation=evaluation,
        measured_on=measured_on,
        picture=embedded,
        evaluations=[title for title, _ in shown],
        scores=tables.score_rows(scored, record.loss_name),
        about_scores=[
            words.about_intervals(scored, record.unit),
            words.about_answers(scored, record.positive_class),
        ],
        columns={name: tables.title(name) for name in tables.scores_of(record.rounds)},
        sites=tables.site_rows(record),
        mean=tables.mean,
        clients=tables.client_rows(record),
        incidents=tables.incidents(record),
        setbacks=tables.setbacks(record),
    )


def _shown_evaluations(record: FederationRecord) -> list[tuple[str, Evaluation]]:
    """The columns of the table of scores: best model on test and holdout, and the last model if it is another one."""
    shown: list[tuple[str, Evaluation]] = []
    if record.test_evaluation:
        which = f" (round {record.best_round})" if record.succeeded else ""
        shown.append((f"{words.best_model(record)}{which}, test set", record.test_evaluation))
    if record.best and record.best.evaluation:
        shown.append((f"best model (round {record.best_round}), holdout", record.best.evaluation))
    last = record.succeeded[-1] if record.succeeded else None
    if last and last.evaluation and last.number != record.best_round:
        shown.append((f"last model (round {last.number}), holdout", last.evaluation))
    return shown


def summary_file(record: FederationRecord) -> bytes:
    """The bytes of `summary.json`, tens of megabytes of which hundreds of rounds of a hundred sites may have.

    Not by Python's own encoder: to indent them it takes several times as long, and as much memory.
    """
    return adapter(dict[str, Any]).dump_json(summary(record), indent=2) + b"\n"


def summary(record: FederationRecord) -> dict[str, Any]:
    """`summary.json`: the best global model on the holdout in six keys, then details.

    `rounds` is the number of rounds run; `bytes_moved` is both ways, all rounds. A score that there is none of,
    or that is not finite, is null.
    """
    document = record_to_json(record)
    best = document["rounds"][record.rounds.index(record.best)]["evaluation"] if record.best else None
    scores = best["metrics"] if best else {}
    trained = {one.name: one.trained for one in tables.site_rows(record) if one.outcome == "completed"}
    return {
        "accuracy": scores.get("accuracy"),
        "loss": scores.get("loss"),
        "best_round": record.best_round,
        "rounds": len(record.rounds),
        "duration_seconds": record.duration_seconds,
        "bytes_moved": record.bytes_received + record.bytes_sent,
        "bytes_received": record.bytes_received,
        "bytes_sent": record.bytes_sent,
        "last_round": record.last_round,
        "synthetic": record.synthetic,
        "score_used_for_choosing": record.test_evaluation is None,
        "caveats": words.caveats(record),
        "mean_client_accuracy": tables.mean(trained.values()),
        "client_accuracy": trained,
        "holdout_evaluation": best,
        "test_evaluation": document["test_evaluation"],
        "counts": {str(one.number): {"offered": one.offered, **one.counts} for one in record.rounds},
        "details": document,
    }
