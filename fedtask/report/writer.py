"""Makes the files of a report: pictures first, then the page that holds them, the summary and the event file."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from fedtask import plots
from fedtask.report import pictures, tables, tensorboard, words
from fedtask.report.record import FederationRecord, record_from_json, record_to_json
from fedtask.task import Evaluation


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the report: its file name without `.png`, what it shows, and how to draw it."""

    name: str
    description: str
    draw: Callable[[Path], None]


def write_report(record: FederationRecord, folder: Path) -> list[Path]:
    """See `fedtask.report.render`."""
    # As a program reads it from JSON: what is not a finite number is gone, in the page as in the summary.
    record = record_from_json(record_to_json(record))
    folder.mkdir(parents=True, exist_ok=True)
    # Made beside their place and moved there, so that nobody ever opens half a report.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as name:
        new = Path(name)
        drawn = {picture.name: picture for picture in _pictures(record)}
        for picture in drawn.values():
            picture.draw(new / f"{picture.name}.png")
        (new / "tensorboard").mkdir()
        events = tensorboard.event_file(tensorboard.scalar_events(record), record.started.timestamp())
        (new / "tensorboard" / tensorboard.FILE_NAME).write_bytes(events)
        (new / "report.html").write_text(page(record, _embedded(new, drawn)), encoding="utf-8")
        told = json.dumps(summary(record), indent=2, allow_nan=False)
        (new / "summary.json").write_text(told + "\n", encoding="utf-8")
        return _move(new, folder)


def _move(new: Path, folder: Path) -> list[Path]:
    """Move every file of `new` to its place in `folder`, the page and the summary last; the places."""
    made = sorted((path for path in new.rglob("*") if path.is_file()), key=lambda path: (path.suffix != ".png", path))
    places = [folder / path.relative_to(new) for path in made]
    for path, place in zip(made, places, strict=True):
        place.parent.mkdir(exist_ok=True)
        path.replace(place)
    return places


def _pictures(record: FederationRecord) -> list[Picture]:
    """The pictures that there is something to show in."""
    found: list[Picture] = []
    if any(one.evaluation for one in record.succeeded):
        found.append(
            Picture(
                "global_progress",
                "Accuracy and loss of the global model on the holdout, per round",
                lambda path: pictures.global_progress(record.succeeded, record.best_round, path),
            )
        )
    if record.succeeded:
        found.append(
            Picture(
                "contributions",
                "Training examples and weight of each client, per round",
                lambda path: pictures.contributions(record.succeeded, path),
            )
        )
    evaluation, _ = headline_evaluation(record)
    return found + (_model_pictures(evaluation, record.positive_class) if evaluation else [])


def _model_pictures(evaluation: Evaluation, positive_class: str) -> list[Picture]:
    """Those that the evaluation has all of: a task of somebody else's may leave curves out, or give half of one."""
    found: list[Picture] = []
    size = len(evaluation.class_names)
    if size and [len(row) for row in evaluation.confusion] == [size] * size:
        draw = partial(plots.confusion_matrix, evaluation)
        found.append(Picture("confusion_matrix", "Confusion matrix of the best model", draw))
    if _has_curve(evaluation, "roc_fpr", "roc_tpr"):
        found.append(Picture("roc", "ROC curve of the best model", partial(plots.roc, evaluation)))
    if _has_curve(evaluation, "calibration_predicted", "calibration_observed", "calibration_count"):
        draw = partial(plots.calibration, evaluation, positive_class or "positive")
        found.append(Picture("calibration", "Calibration of the best model", draw))
    return found


def _has_curve(evaluation: Evaluation, *names: str) -> bool:
    """Whether it has the columns of these names, of one length above 0."""
    lengths = {len(evaluation.curves.get(name, ())) for name in names}
    return len(lengths) == 1 and 0 not in lengths


def headline_evaluation(record: FederationRecord) -> tuple[Evaluation | None, str]:
    """The evaluation that the report leads with, and the name of its set: the test set if there is one."""
    if record.test_evaluation is not None:
        return record.test_evaluation, "test set"
    return (record.best.evaluation if record.best else None), "holdout"


def _embedded(folder: Path, drawn: dict[str, Picture]) -> dict[str, dict[str, str]]:
    """Each picture as an `<img>` needs it: its bytes as a data address, and what it shows."""
    return {
        name: {
            "address": "data:image/png;base64," + base64.b64encode((folder / f"{name}.png").read_bytes()).decode(),
            "description": picture.description,
        }
        for name, picture in drawn.items()
    }


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
    return environment.get_template("report.html.j2").render(
        record=record,
        words=words,
        evaluation=evaluation,
        measured_on=measured_on,
        picture=embedded,
        evaluations=[title for title, _ in shown],
        scores=tables.score_rows([scored for _, scored in shown]),
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
        shown.append((f"best model (round {record.best_round}), test set", record.test_evaluation))
    if record.best and record.best.evaluation:
        shown.append((f"best model (round {record.best_round}), holdout", record.best.evaluation))
    last = record.succeeded[-1] if record.succeeded else None
    if last and last.evaluation and last.number != record.best_round:
        shown.append((f"last model (round {last.number}), holdout", last.evaluation))
    return shown


def summary(record: FederationRecord) -> dict[str, Any]:
    """`summary.json`: the best global model on the holdout in six keys, then details.

    `rounds` is the number of rounds run; `bytes_moved` is both ways, all rounds. A score that there is none of is null.
    """
    document = record_to_json(record)
    best = document["rounds"][record.rounds.index(record.best)]["evaluation"] if record.best else None
    scores = best["metrics"] if best else {}
    sites = tables.site_rows(record)
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
        "mean_client_accuracy": tables.mean(one.trained for one in sites),
        "client_accuracy": {one.name: one.trained for one in sites if one.outcome == "completed"},
        "holdout_evaluation": best,
        "test_evaluation": document["test_evaluation"],
        "counts": {str(one.number): {"offered": one.offered, **one.counts} for one in record.rounds},
        "details": document,
    }
