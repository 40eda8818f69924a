from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedtask.report import (
    ClientRecord,
    Contribution,
    DataDescription,
    FederationRecord,
    RoundRecord,
    record_from_json,
    record_to_json,
    render,
)
from fedtask.report.writer import summary_file
from fedtask.task import Evaluation
from tests.unit.fedtask.report.conftest import regression_rounds

MakeRecord = Callable[..., FederationRecord]
HOSTILE = "<script>alert('$\\frac{x}$')</script>\"\x1b[31m"

WITHOUT_PICTURES = """
import json, pathlib, sys
from fedtask import report
record = report.record_from_json(json.loads(pathlib.Path(sys.argv[1]).read_text()))
report.render(record, pathlib.Path(sys.argv[2]), pictures=False)
assert "matplotlib" not in sys.modules, "a second of import for nothing"
"""

KILLED = """
import json, os, pathlib, sys
from fedtask.report import record_from_json, writer
record = record_from_json(json.loads(pathlib.Path(sys.argv[1]).read_text()))
writer.summary_file = lambda _: os._exit(9)
writer.write_report(record, pathlib.Path(sys.argv[2]), pictures=False)
"""

pytestmark = pytest.mark.filterwarnings("error")


class Page(HTMLParser):
    """Tags, attribute values and the visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def read(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_render_of_a_federation_writes_every_file_and_nothing_else(make_record: MakeRecord, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "report"

    got = render(make_record(), folder)

    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "calibration.png",
        "confusion_matrix.png",
        "contributions.png",
        "global_progress.png",
        "report.html",
        "roc.png",
        "summary.json",
        "tensorboard/events.out.tfevents.fedstream",
    }
    assert sorted(got) == sorted(folder / name for name in names)
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in folder.glob("*.png"))


def test_render_without_pictures_has_the_same_words_and_draws_nothing(make_record: MakeRecord, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps(record_to_json(make_record())))
    command = [sys.executable, "-c", WITHOUT_PICTURES, str(tmp_path / "record.json"), str(tmp_path / "without")]
    subprocess.run(command, check=True)
    render(make_record(), tmp_path / "with")
    without, drawn = read(tmp_path / "without"), read(tmp_path / "with")
    assert "img" in drawn.tags
    assert "img" not in without.tags
    assert list((tmp_path / "without").glob("*.png")) == []
    assert set(without.text.split()) <= set(drawn.text.split())
    assert "Accuracy" in without.text


def test_render_clears_away_what_a_killed_process_has_left(make_record: MakeRecord, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    (tmp_path / "record.json").write_text(json.dumps(record_to_json(make_record())))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "record.json"), str(folder)]
    assert subprocess.run(command, check=False).returncode == 9
    assert len(list(folder.iterdir())) == 1

    render(make_record(), folder, pictures=False)

    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "summary.json", "tensorboard"]


def test_summary_of_many_rounds_takes_little_more_memory_than_its_file(make_record: MakeRecord) -> None:
    first, *_ = make_record().rounds
    offers = tuple(replace(first.contributions[0], client_name=f"site-{i}", rank=i) for i in range(50))
    record = make_record(rounds=tuple(replace(first, number=number, contributions=offers) for number in range(1, 21)))
    summary_file(record)  # what is made once is made

    tracemalloc.start()
    try:
        size = len(summary_file(record))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 5 * size


def test_summary_begins_with_the_best_model_on_the_holdout(make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record()
    render(record, tmp_path, pictures=False)

    summary = json.loads((tmp_path / "summary.json").read_text())

    best = record.rounds[1].evaluation
    assert best is not None
    assert list(summary.items())[:6] == [
        ("accuracy", 39 / 40),
        ("loss", best.metrics["loss"]),
        ("best_round", 2),
        ("rounds", 3),
        ("duration_seconds", 93.5),
        ("bytes_moved", 5400 + 15000),
    ]
    assert summary["mean_client_accuracy"] == 0.875
    assert summary["client_accuracy"] == {"north": 0.75, "south": 1.0}
    assert summary["counts"]["3"] == {
        "offered": 2,
        "completed": 1,
        "quarantined": 0,
        "declined": 0,
        "withdrawn": 0,
        "failed": 0,
        "expired": 1,
        "cancelled": 0,
    }
    assert summary["score_used_for_choosing"] is True
    assert record_from_json(summary["details"]) == record


def test_page_says_the_result_its_interval_and_its_limits(make_record: MakeRecord, tmp_path: Path) -> None:
    render(make_record(), tmp_path, pictures=False)

    text = read(tmp_path).text

    for part in (
        "97.5% accuracy (95% interval 87.1% to 99.6%)",
        "It gave the right answer for 39 of 40 images.",
        "Of 20 images that truly are “yes”, it found 19 and missed 1",
        "The score was also used for choosing",
        "Intervals are per image, not per patient.",
        "Slices of one patient may fall on both sides.",
        "97.5% on the holdout, round 2",
        "mean 87.5%, every site counted alike however many validation images it has: north 75.0%, south 100%",
        "Mean of the completed, each counted alike 62.5% 87.5% 62.5%",
        "How many these are, clients do not report: the mean may count an accuracy on very few as much as one on many",
        "1 min 34 s",
        "20.4 kB: 5.4 kB from clients, 15.0 kB to clients",
        "declined at the handshake : its model differs: head/kernel",
        "no sign of life for 60 s",
        "best model (round 2), holdout",
        "last model (round 3), holdout",
        "ab" * 32,
    ):
        assert part in text
    assert "Generated data" not in text


def test_page_with_a_test_set_leads_with_its_score(make_record: MakeRecord, tmp_path: Path) -> None:
    tested = make_record().rounds[0].evaluation

    render(make_record(test=DataDescription({"no": 20, "yes": 20}), test_evaluation=tested), tmp_path, pictures=False)

    text = read(tmp_path).text
    assert "90.0% accuracy" in text
    assert "was looked at once" in text
    assert "also used for choosing" not in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["accuracy"], summary["score_used_for_choosing"]) == (39 / 40, False)


def test_page_on_generated_data_says_that_no_patient_was_scanned(make_record: MakeRecord, tmp_path: Path) -> None:
    render(make_record(training_data_synthetic=True), tmp_path, pictures=False)

    text = read(tmp_path).text
    assert "Generated data, not patients. The training images were generated by a program (a phantom)." in text


def test_page_needs_nothing_from_outside(make_record: MakeRecord, tmp_path: Path) -> None:
    render(make_record(), tmp_path)

    page = read(tmp_path)

    addresses = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert len(addresses) == 5
    prefix = "data:image/png;base64,"
    pictures = {base64.b64decode(value.removeprefix(prefix)) for value in addresses if value}
    assert pictures == {path.read_bytes() for path in tmp_path.glob("*.png")}
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in (tmp_path / "report.html").read_text()
    assert "url(" not in (tmp_path / "report.html").read_text()


def test_hostile_names_and_reasons_are_shown_as_text(make_record: MakeRecord, tmp_path: Path) -> None:
    rounds = make_record().rounds
    hostile = replace(rounds[1].contributions[0], client_name=HOSTILE)
    failed = Contribution(HOSTILE, 1, "failed", reason=HOSTILE)
    record = make_record(
        federation_name=HOSTILE,
        rounds=(
            rounds[0],
            replace(rounds[1], contributions=(hostile, failed)),
            RoundRecord(3, False, HOSTILE, 1.0),
        ),
        clients=(ClientRecord(HOSTILE, "declined", HOSTILE, software=HOSTILE),),
        outcome=HOSTILE,
        outcome_reason=HOSTILE,
        settings={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
    )

    render(record, tmp_path)

    page = read(tmp_path)
    assert "script" not in page.tags
    assert page.text.count("<script>alert('$\\frac{x}$')</script>\"") >= 12
    assert all(not name.startswith("on") for name, _ in page.attributes)


def test_report_without_any_successful_round_says_so(make_record: MakeRecord, tmp_path: Path) -> None:
    failed = RoundRecord(1, False, "1 update, 2 needed", 30.0, contributions=(Contribution("north", 0, "expired"),))

    render(make_record(rounds=(failed,), best_round=None, outcome="failed", model_files=()), tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "summary.json", "tensorboard"]
    text = read(tmp_path).text
    assert "No model No round succeeded" in text
    assert "Round 1 failed: 1 update, 2 needed." in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [summary[key] for key in ("accuracy", "loss", "best_round", "rounds")] == [None, None, None, 1]


def test_report_of_a_federation_that_nobody_joined_says_so(make_record: MakeRecord, tmp_path: Path) -> None:
    render(make_record(rounds=(), best_round=None, clients=(), holdout=None), tmp_path)

    text = read(tmp_path).text
    assert "No round was opened." in text
    assert "No client came." in text


def test_report_without_a_holdout_has_contributions_and_no_score(make_record: MakeRecord, tmp_path: Path) -> None:
    rounds = tuple(replace(one, evaluation=None) for one in make_record().rounds)

    render(make_record(rounds=rounds, best_round=None, holdout=None), tmp_path)

    assert [path.name for path in tmp_path.glob("*.png")] == ["contributions.png"]
    text = read(tmp_path).text
    assert "No score 3 rounds made a global model, the last in round 3" in text
    assert "but it was not scored: the coordinator had no holdout." in text


def test_report_with_null_metrics_gives_the_reasons(make_record: MakeRecord, tmp_path: Path) -> None:
    half = Evaluation(
        metrics={"loss": 0.5, "accuracy": None, "auc": math.nan},
        num_examples=3,
        undefined={"accuracy": "the task counts no answers"},
        curves={"roc_fpr": [0.0, 1.0], "roc_tpr": [0.0]},
    )
    rounds = (RoundRecord(1, True, "", 1.0, evaluation=half, contributions=(Contribution("a", 0, "completed"),)),)

    render(make_record(rounds=rounds, best_round=1), tmp_path)

    text = read(tmp_path).text
    assert "0.5000 loss" in text
    assert "undefined: the task counts no answers" in text
    assert "undefined: the task gave a value that is not a finite number" in text
    assert "nan" not in re.sub(r"[\w+/=]{200,}", "", (tmp_path / "report.html").read_text())
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["contributions.png", "global_progress.png"]
    assert json.loads((tmp_path / "summary.json").read_text())["accuracy"] is None


def test_report_of_fifty_clients_lists_each_and_stays_small(make_record: MakeRecord, tmp_path: Path) -> None:
    scored = make_record().rounds[0].evaluation
    names = [f"site-{i:02d}" for i in range(50)]
    offers = tuple(
        Contribution(name, i, "completed", num_examples=10 + i, weight=0.02, metrics={"val_accuracy": 0.5})
        for i, name in enumerate(names)
    )
    rounds = tuple(RoundRecord(n, True, "", 1.0, evaluation=scored, contributions=offers) for n in range(1, 21))

    render(make_record(rounds=rounds, best_round=20, clients=()), tmp_path)

    page = (tmp_path / "report.html").read_text()
    assert all(page.count(f">{name}<") == 2 for name in names)
    told = "mean 50.0%, every site counted alike however many validation images it has; over 50 clients, listed below"
    assert told in read(tmp_path).text
    assert len(page) < 1_000_000


def test_render_again_replaces_the_earlier_report(make_record: MakeRecord, tmp_path: Path) -> None:
    render(make_record(federation_name="earlier"), tmp_path)
    first = {path.name for path in tmp_path.rglob("*")}

    render(make_record(federation_name="later"), tmp_path)

    assert {path.name for path in tmp_path.rglob("*")} == first
    assert "earlier" not in read(tmp_path).text
    assert "later" in read(tmp_path).text


@pytest.mark.parametrize("sent", [-1e308, 1.7e308])
def test_report_survives_accuracies_that_are_none(make_record: MakeRecord, tmp_path: Path, sent: float) -> None:
    rounds = make_record().rounds
    odd = tuple(replace(one, metrics={"val_accuracy": sent, "base_accuracy": sent}) for one in rounds[1].contributions)

    render(make_record(rounds=(rounds[0], replace(rounds[1], contributions=odd), rounds[2])), tmp_path)

    assert len(list(tmp_path.glob("*.png"))) == 5
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["mean_client_accuracy"], summary["client_accuracy"]) == (None, {"north": None, "south": None})


def test_page_of_a_test_set_without_any_successful_round_speaks_of_the_initial_model(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    tested, failed = make_record().rounds[0].evaluation, RoundRecord(1, False, "1 update, 2 needed", 30.0)

    render(make_record(rounds=(failed,), best_round=None, test_evaluation=tested, model_files=()), tmp_path)

    page = read(tmp_path)
    said = page.text + " ".join(value or "" for name, value in page.attributes if name == "alt")
    assert "The initial model, since no round made another, was shown the 40 images of the test set" in said
    for part in ("Initial model on the test set", "initial model, test set", "ROC curve of the initial model"):
        assert part in said
    for wrong in ("round None", "best model", "best global model", "had been chosen"):
        assert wrong not in said


def test_means_leave_out_sites_that_were_kept_aside(make_record: MakeRecord, tmp_path: Path) -> None:
    rounds = make_record().rounds
    north, south = rounds[1].contributions
    aside = replace(south, outcome="quarantined", weight=None)

    render(make_record(rounds=(rounds[0], replace(rounds[1], contributions=(north, aside)), rounds[2])), tmp_path)

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["mean_client_accuracy"], summary["client_accuracy"]) == (0.75, {"north": 0.75})
    text = read(tmp_path).text
    assert "mean 75.0%, every site counted alike however many validation images it has: north 75.0%" in text
    assert "Mean of the completed, each counted alike 50.0% 75.0% 62.5%" in text


@pytest.mark.parametrize(("best_round", "met_again"), [(2, True), (3, False)], ids=["a round after it", "the last"])
def test_column_of_the_best_model_is_there_if_a_client_met_it_again(
    make_record: MakeRecord, tmp_path: Path, best_round: int, met_again: bool
) -> None:
    render(make_record(best_round=best_round), tmp_path, pictures=False)

    text = read(tmp_path).text
    assert ("of the best global model" in text, "the last column as reported" in text) == (met_again, met_again)
    assert "of the model it trained" in text


def regression(make_record: MakeRecord, **fields: object) -> FederationRecord:
    chosen = {"best_round": 3, "best_chosen_by": "the lowest loss on the holdout"}
    bare = {"positive_class": "", "unit": "example", "loss_name": "", "holdout": DataDescription({"values": 50})}
    return make_record(**({"rounds": regression_rounds()} | chosen | bare | fields))


def test_page_of_a_task_without_accuracy_speaks_of_what_it_gives(make_record: MakeRecord, tmp_path: Path) -> None:
    render(regression(make_record), tmp_path)

    page = read(tmp_path)
    for part in (
        "1.3333 loss",
        "scored on 50 examples of the holdout. The task gives no accuracy.",
        "Best global loss, its round 1.3333 on the holdout, round 3 (chosen by the lowest loss on the holdout)",
        "Round Result Loss mse r2 Offered",
        "★ succeeded 1.3333 1.3333 0.5000",
        "Training examples",
    ):
        assert part in page.text
    for wrong in ("image", "ccuracy of", "lient accuracy", "cross-entropy", "positive", "nterval", "Wilson"):
        assert wrong not in page.text
    shown = [value for name, value in page.attributes if name == "alt"]
    assert shown[0] == "Loss, mse and r2 of the global model on the holdout, per round"


def test_page_of_a_task_without_accuracy_and_loss_leads_with_its_first_score(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    tested = Evaluation({"mse": 1.5, "r2": 0.25}, 20)

    render(regression(make_record, rounds=regression_rounds(loss=False), test_evaluation=tested), tmp_path)

    text = read(tmp_path).text
    assert "1.5000 mse" in text
    assert "Best global mse, its round 1.3333 on the holdout" in text
    assert "Best model on the test set mse 1.5000, looked at once" in text


THREE = Evaluation(
    {"loss": 0.5, "accuracy": 0.75}, 12, class_names=("a", "b", "c"), confusion=((3, 1, 0), (1, 3, 0), (1, 0, 3))
)


def test_page_of_several_classes_speaks_of_the_highest_probability_and_of_no_intervals(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    rounds = (replace(make_record().rounds[0], evaluation=THREE),)

    render(make_record(rounds=rounds, best_round=1, positive_class="c"), tmp_path, pictures=False)

    text = read(tmp_path).text
    assert "It gave the right answer for 9 of 12 images." in text
    assert "The answer is the class with the highest probability." in text
    for wrong in ("positive class", "0.5.", "nterval", "Wilson", "Brier"):
        assert wrong not in text


def test_page_of_two_classes_says_which_is_the_positive_one_and_how_intervals_were_made(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    render(make_record(), tmp_path, pictures=False)

    assert (
        "In brackets: 95% intervals, per image. Wilson's for proportions, Newcombe's method 5 for the AUC, a seeded "
        "bootstrap for loss and Brier score. The positive class is “yes”; an answer is positive above a probability "
        "of 0.5."
    ) in read(tmp_path).text


def test_page_says_of_clients_how_they_stood_as_the_federation_ended(make_record: MakeRecord, tmp_path: Path) -> None:
    clients = (
        ClientRecord("north", "connected", "", 25),
        ClientRecord("south", "left", "the operator stopped it", 75),
        ClientRecord("west", "disconnected", "no sign of life for 60 s", 75),
    )

    render(make_record(clients=clients), tmp_path, pictures=False)

    text = read(tmp_path).text
    for part in (
        "Client As the federation ended",
        "north connected to the end 3 of 3",
        "south had left : the operator stopped it",
        "west had lost its connection : no sign of life for 60 s",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "Settings of the task None was given: all are at the task's defaults."),
        ({"noise": "0.1"}, "Settings of the task noise 0.1 All others are at the task's defaults."),
    ],
)
def test_page_says_which_settings_are_defaults(
    make_record: MakeRecord, tmp_path: Path, settings: dict[str, str], text: str
) -> None:
    render(make_record(settings=settings), tmp_path, pictures=False)

    assert text in read(tmp_path).text
