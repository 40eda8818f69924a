"""What is kept and reported of rounds and of the federation as a whole."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fedserver.clock import wall_time_of
from fedserver.coordinator.participation import Participation
from fedserver.coordinator.round import Round
from fedserver.federation import Federation, FederationState
from fedserver.report_notes import note_of_others, notes_of_methods
from fedserver.traffic import Traffic
from fedstream.sizes import size
from fedtask.report import (
    ClientRecord,
    Contribution,
    DataDescription,
    FederationRecord,
    ModelFile,
    PlanRecord,
    RoundRecord,
)
from fedtask.task import Evaluation, SiteSummary

_SHOWN_VERSIONS = ("fedstream", "tensorflow", "keras", "numpy", "grpcio", "protobuf")


def round_record(
    federation: Federation, round_: Round, moved: Traffic, evaluation: Evaluation | None, evaluation_reason: str
) -> RoundRecord:
    """The record of a round that is closed, in which so much was moved."""
    assert round_.closed is not None, "a round is recorded once it is closed"
    return RoundRecord(
        number=round_.number,
        succeeded=round_.succeeded,
        reason=round_.reason if round_.succeeded else _why_failed(round_),
        duration_seconds=federation.now - round_.opened,
        opened=wall_time_of(federation.clock, round_.opened),
        closed=wall_time_of(federation.clock, round_.closed),
        evaluation=evaluation,
        evaluation_reason=evaluation_reason,
        holdout_id=federation.holdout_id if evaluation is not None else "",
        bytes_received=moved.received,
        bytes_sent=moved.sent,
        contributions=tuple(_contribution(part) for part in round_.participations),
    )


def _why_failed(round_: Round) -> str:
    return f"{len(round_.completed)} of at least {round_.rules.min_clients} updates: {round_.reason}"


def _contribution(part: Participation) -> Contribution:
    assert part.outcome is not None, "every part of a closed round has ended"
    return Contribution(
        client_name=part.client,
        rank=part.rank,
        outcome=part.outcome.value,
        reason=part.reason,
        num_examples=part.num_examples or None,
        weight=part.weight or None,
        metrics=part.metrics,
        epochs=part.plan.epochs,
        upload_bytes=part.committed_size,
        seconds=part.ended_at - part.offered_at if part.ended_at is not None else None,
        undefined=part.undefined,
    )


def federation_record(
    federation: Federation,
    reason: str,
    test_evaluation: Evaluation | None,
    test_summary: SiteSummary | None,
    model_files: Sequence[ModelFile],
) -> FederationRecord:
    """Everything the report says."""
    config, best = federation.config, federation.scoreboard.best
    best_round = best.version if best is not None and best.version else None
    rounds = tuple(federation.history)
    words = federation.task.report_words
    return FederationRecord(
        federation_name=config.name,
        task_name=config.task,
        model=_model_words(federation),
        strategy=config.strategy,
        plan=PlanRecord.of(federation.plan),
        started=datetime.fromtimestamp(federation.working_time.first_start, UTC),
        ended=datetime.fromtimestamp(federation.clock.wall(), UTC),
        duration_seconds=federation.working_time.seconds(federation.now),
        outcome=_outcome_word(federation),
        outcome_reason=reason,
        rounds_planned=config.rounds,
        rounds=rounds,
        best_round=best_round if best_round is not None else _last_success(rounds),
        best_chosen_by=federation.scoreboard.criterion if best_round is not None else "being the last",
        early_stop_reason=federation.scoreboard.why_stopping(),
        positive_class=federation.meaning.positive_class,
        unit=words.example,
        loss_name=words.loss,
        holdout=_describe_data(federation.evaluator.summary, config.holdout),
        test=_describe_data(test_summary, config.test),
        test_evaluation=test_evaluation,
        clients=tuple(
            ClientRecord(
                name=client.name,
                state=client.state.value,
                reason=client.reason,
                num_examples=client.introduction.num_examples,
                software=client.introduction.software,
            )
            for client in federation.population
        ),
        model_files=tuple(model_files),
        training_data_synthetic=any(client.introduction.synthetic_data for client in federation.population),
        settings=dict(config.task_settings),
        seeds={"federation": config.seed},
        versions=_versions(),
        notes=_notes(federation, rounds),
    )


def _notes(federation: Federation, rounds: Sequence[RoundRecord]) -> tuple[str, ...]:
    methods = notes_of_methods(federation.state.database, federation.config.strategy, federation.plan)
    return tuple(note for note in (note_of_others(rounds, federation.holdout_id), *methods) if note)


def _outcome_word(federation: Federation) -> str:
    if federation.standing.state is FederationState.FAILED:
        return "failed"
    return "stopped" if federation.stop_requested.is_set() else "finished"


def _model_words(federation: Federation) -> str:
    schema = federation.schema
    trainable = sum(spec.num_elements for spec in schema if spec.trainable)
    values = sum(spec.num_elements for spec in schema)
    return f"{len(schema)} tensors, {values:,} values, {trainable:,} of them trained, {size(schema.size_bytes)}"


def _last_success(rounds: Sequence[RoundRecord]) -> int | None:
    return max((record.number for record in rounds if record.succeeded), default=None)


def _describe_data(summary: SiteSummary | None, source: str | None) -> DataDescription | None:
    if summary is None:
        return None
    counts: dict[str, int] = {}
    for of_split in summary.counts.values():
        for name, count in of_split.items():
            counts[name] = counts.get(name, 0) + count
    return DataDescription(
        counts=counts,
        weaknesses=tuple(summary.weaknesses),
        synthetic=summary.synthetic,
        source=Path(source).name if source else "",
        skipped=dict(summary.skipped),
    )


def describe_file(path: Path, description: str) -> ModelFile:
    """A model file that was written. Blocks for as long as reading it takes."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return ModelFile(path.name, sha256, file.tell(), description)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _SHOWN_VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
