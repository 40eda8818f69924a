"""What the report says in words: numbers as people read them, and the sentences around a score.

Written for a clinician or a coordinator, who may not know what a loss is and must not take a score for more than it is.
Everything here is plain text; the page escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from fedtask.metrics import METRIC_NAMES, leading
from fedtask.report.record import DataDescription, FederationRecord
from fedtask.task import Evaluation, Interval

NOTHING = "–"
"""Stands for a value that there is none of."""


def percent(value: float | None) -> str:
    """`98.9%`, `100%` only when it is."""
    if value is None:
        return NOTHING
    text = f"{value:.1%}"
    # 0.9996 is not "100.0%": somebody would read that as no mistakes at all.
    if text == "100.0%":
        return "100%" if value == 1 else f"{value:.2%}" if value < 0.99995 else "over 99.99%"
    return "0%" if value == 0 else text


def number(value: float | None) -> str:
    """A plain number with four decimals."""
    return NOTHING if value is None else f"{value:.4f}"


def duration(seconds: float | None) -> str:
    """`2 h 03 min`, `3 min 20 s`, `4.2 s`."""
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def instant(moment: datetime) -> str:
    """`1 March 2026, 14:05 UTC`."""
    there = moment.astimezone(UTC)
    return f"{there.day} {there:%B %Y, %H:%M} UTC"


_MOST_RUNS = 12
"""So many are read; a site that is slow in every other of 500 rounds has 250. `summary.json` has them all."""


def rounds(numbers: Sequence[int]) -> str:
    """`round 3`, `rounds 1 to 4, 7`; of many runs the first, and how many rounds more."""
    runs: list[list[int]] = []
    for one in sorted(set(numbers)):
        if runs and one == runs[-1][1] + 1:
            runs[-1][1] = one
        else:
            runs.append([one, one])
    texts = [
        str(low) if low == high else f"{low}, {high}" if high == low + 1 else f"{low} to {high}" for low, high in runs
    ]
    more = sum(high - low + 1 for low, high in runs[_MOST_RUNS:])
    tail = f" and {more:,} more" if more else ""
    return f"round{'s' if len(set(numbers)) > 1 else ''} {', '.join(texts[:_MOST_RUNS])}{tail}"


def between(interval: Interval | None) -> str:
    """`97.3% to 99.6%`."""
    return NOTHING if interval is None else f"{percent(interval.low)} to {percent(interval.high)}"


def counted(count: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def best_model(record: FederationRecord) -> str:
    """What the model is that stands for the federation: without a round that made one, it is the initial one."""
    return "best model" if record.succeeded else "initial model"


def whose_score(record: FederationRecord) -> str:
    """The same, as the subject of the sentences about its score."""
    if not record.succeeded:
        return "The initial model, since no round made another,"
    return f"The best global model, from round {record.best_round},"


_SHARES = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision")


def score(name: str, value: float | None) -> str:
    """The value of the metric `name`: shares as percent, all others as plain numbers."""
    return percent(value) if name in _SHARES else number(value)


def interval_of(name: str, interval: Interval) -> str:
    """The same for its interval."""
    return f"{score(name, interval.low)} to {score(name, interval.high)}"


def main_score(evaluation: Evaluation) -> str:
    """Name of the metric that stands for all: accuracy, without it loss, and without both the first that there is."""
    names = leading(name for name, value in evaluation.metrics.items() if value is not None)
    return names[0] if names else "loss"


def in_short(evaluation: Evaluation) -> str:
    """`accuracy 97.5%, loss 0.1234`: the main score, and the loss if that is another one."""
    names = dict.fromkeys((main_score(evaluation), "loss"))
    there = {name: evaluation.metrics.get(name) for name in names if name in evaluation.metrics}
    return ", ".join(f"{name} {score(name, value)}" for name, value in there.items()) or NOTHING


_STATES = {
    "connected": "connected to the end",
    "disconnected": "had lost its connection",
    "left": "had left",
    "declined": "declined at the handshake",
}
"""States as `fedserver` keeps them. The report is made before clients are told of the end: none has left because of it.
"""


def client_state(state: str) -> str:
    """How a client stood as the federation ended."""
    return _STATES.get(state, state or NOTHING)


def headline(evaluation: Evaluation, unit: str) -> str:
    """How many the model got right, as one sentence."""
    total = evaluation.num_examples
    if not evaluation.confusion or any(len(row) != len(evaluation.confusion) for row in evaluation.confusion):
        return f"Accuracy {percent(evaluation.metrics.get('accuracy'))} on {counted(total, unit)}."
    right = sum(row[i] for i, row in enumerate(evaluation.confusion))
    return f"It gave the right answer for {right:,} of {counted(total, unit)}."


def explanations(evaluation: Evaluation, positive_class: str, unit: str) -> list[str]:
    """What sensitivity, specificity, precision and AUC say here, a sentence each; undefined ones say why."""
    if [len(row) for row in evaluation.confusion] != [2, 2] or positive_class not in evaluation.class_names:
        return []
    positive = list(evaluation.class_names).index(positive_class)
    negative_class = evaluation.class_names[1 - positive]
    found, missed = evaluation.confusion[positive][positive], evaluation.confusion[positive][1 - positive]
    alarms, cleared = evaluation.confusion[1 - positive][positive], evaluation.confusion[1 - positive][1 - positive]
    sentences = {
        "sensitivity": f"Of {counted(found + missed, unit)} that truly are “{positive_class}”, it found {found:,} and "
        f"missed {missed:,}: sensitivity",
        "specificity": f"Of {counted(alarms + cleared, unit)} that truly are “{negative_class}”, it cleared "
        f"{cleared:,} and raised {counted(alarms, 'false alarm')}: specificity",
        "precision": f"When it says “{positive_class}”, it is right in {found:,} of {found + alarms:,} cases here: "
        "precision",
    }
    return [_with_value(evaluation, name, sentence) for name, sentence in sentences.items()]


_METHODS = {
    "Wilson's for proportions": ("accuracy", "sensitivity", "specificity", "precision"),
    "Newcombe's method 5 for the AUC": ("auc",),
    "a seeded bootstrap for loss and Brier score": ("loss", "brier_score"),
}
"""How `fedtask.metrics.binary_evaluation` comes by its intervals. Nothing is known of those of other evaluations."""


def about_intervals(evaluations: Sequence[Evaluation], unit: str) -> str:
    """What the intervals in the table of scores are; empty without any."""
    given = {name for evaluation in evaluations for name in evaluation.intervals}
    if not given:
        return ""
    told = f"In brackets: 95% intervals, per {unit}."
    methods = [method for method, names in _METHODS.items() if given & set(names)]
    if not methods or any(tuple(evaluation.metrics) != METRIC_NAMES for evaluation in evaluations):
        return told
    return f"{told} {', '.join(methods)}."


def about_answers(evaluations: Sequence[Evaluation], positive_class: str) -> str:
    """When the model gives which answer; empty where no class is answered."""
    most = max((len(evaluation.class_names) for evaluation in evaluations), default=0)
    if most > 2:
        return "The answer is the class with the highest probability."
    if most == 2 and positive_class:
        return f"The positive class is “{positive_class}”; an answer is positive above a probability of 0.5."
    return ""


def _with_value(evaluation: Evaluation, name: str, sentence: str) -> str:
    value, interval = evaluation.metrics.get(name), evaluation.intervals.get(name)
    if value is None:
        return f"{name.capitalize()} cannot be given: {evaluation.undefined.get(name, 'it was not measured')}."
    told = f"{sentence} {percent(value)}"
    return f"{told} (95% interval {between(interval)})." if interval else f"{told}."


def caveats(record: FederationRecord) -> list[str]:
    """What must stand beside the score: where the data comes from, its weaknesses, and how the score was come by."""
    unit = record.unit
    said: list[str] = []
    scored = record.test_evaluation or (record.best.evaluation if record.best else None)
    if record.test_evaluation is not None:
        said.append(
            f"The score is from a test set of {counted(record.test_evaluation.num_examples, unit)} that was looked at "
            f"once{', after the model had been chosen' if record.succeeded else ''}."
        )
    elif scored is not None:
        said.append(
            "The score was also used for choosing: the best round and the moment to stop were picked on the same "
            f"{unit}s that it was measured on, so it is likely to be somewhat too good. A separate test set (--test) "
            "would mend this."
        )
    if scored is not None and scored.intervals:
        said.append(_less_certain(scored, unit))
    for described in (record.holdout, record.test):
        said += described.weaknesses if described else ()
    return list(dict.fromkeys(said))


def _less_certain(scored: Evaluation, unit: str) -> str:
    """That the intervals do not know of patients; and those that do, where the data says whose each example is."""
    names = {"accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity", "auc": "AUC"}
    wide = [
        f"{shown} {interval_of(name, scored.grouped_intervals[name])}"
        for name, shown in names.items()
        if name in scored.grouped_intervals
    ]
    if not wide:
        return (
            f"Intervals are per {unit}, not per patient. Where several {unit}s come from one patient, the truth is "
            "less certain than the intervals say."
        )
    return (
        f"Intervals are per {unit}. By their sub-folders the {unit}s are of {scored.num_groups:,} patients, if each is "
        f"one: where all {unit}s of a patient are right or wrong together, the 95% intervals are {', '.join(wide)}."
    )


def phantom(record: FederationRecord) -> str | None:
    """The warning that generated data is not patients, if any was."""
    if not record.synthetic:
        return None
    where = [
        name
        for name, generated in (
            ("training", record.training_data_synthetic),
            ("holdout", record.holdout is not None and record.holdout.synthetic),
            ("test", record.test is not None and record.test.synthetic),
        )
        if generated
    ]
    return (
        f"The {listed(where)} {record.unit}s were generated by a program (a phantom). No patient was scanned. The "
        "scores show that the federation works, and nothing about medicine."
    )


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def described(data: DataDescription | None, unit: str) -> str:
    """`374 images (no 124, yes 250) from val`."""
    if data is None:
        return "none"
    classes = ", ".join(f"{name} {count:,}" for name, count in data.counts.items())
    source = f" from {data.source}" if data.source else ""
    skipped = sum(data.skipped.values())
    left_out = f"; {counted(skipped, 'file')} left out ({', '.join(data.skipped)})" if skipped else ""
    generated = ", generated" if data.synthetic else ""
    return f"{counted(data.num_examples, unit)} ({classes}){source}{generated}{left_out}"


def ending(record: FederationRecord) -> str:
    """How the federation ended, in one sentence."""
    done = f"Rounds run: {len(record.rounds)} of {record.rounds_planned} planned"
    if not record.succeeded:
        done += ", and none succeeded: there is no new global model"
    reason = record.early_stop_reason or record.outcome_reason
    return f"{done}. {reason[:1].upper()}{reason[1:]}{'' if reason.endswith('.') else '.'}" if reason else f"{done}."
