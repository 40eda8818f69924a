"""Rounds that are over, as the administration's messages: of a running server, or of a state directory alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from fedserver.services import messages
from fedserver.store.database import Database
from fedserver.store.ledger import RoundModels, models_of_rounds
from fedserver.store.rounds import late_updates
from fedstream import wire
from fedstream.outcomes import Outcome
from fedstream.v1 import admin_pb2
from fedtask.report import Contribution, RoundRecord


def write_records(database: Database, records: Sequence[RoundRecord]) -> list[admin_pb2.Round]:
    """Rounds that are over, one after the other, with their models as the ledger has them."""
    if not records:
        return []
    models = models_of_rounds(database, records[0].number, records[-1].number)
    return [write_record(record, models.get(record.number, RoundModels())) for record in records]


def write_record(record: RoundRecord, models: RoundModels) -> admin_pb2.Round:
    """A round that is over."""
    message = admin_pb2.Round(
        number=record.number,
        phase=admin_pb2.ROUND_PHASE_DONE,
        succeeded=record.succeeded,
        reason=record.reason,
        counts=admin_pb2.OutcomeCounts(offered=record.offered, **record.counts),
        bytes_received=record.bytes_received,
        bytes_sent=record.bytes_sent,
    )
    if record.closed is not None:
        message.closed.FromDatetime(record.closed)
        # Of a round of an earlier version, not before this: its duration is longer by that of publishing and scoring.
        message.opened.FromDatetime(record.opened or record.closed - timedelta(seconds=record.duration_seconds))
    if models.base is not None:
        message.base_model.CopyFrom(wire.write_model_ref(models.base))
    if models.made is not None:
        message.global_model.CopyFrom(wire.write_model_ref(models.made))
    if record.evaluation is not None:
        message.metrics.extend(wire.write_metrics(record.evaluation.metrics, record.evaluation.undefined))
    return message


def write_detail(database: Database, record: RoundRecord) -> admin_pb2.GetRoundResponse:
    """A round that is over, and its clients, with what became of updates that came too late."""
    (written,), late = write_records(database, [record]), late_updates(database, record.number)
    parts = [_write_contribution(one, late.get(one.rank, "")) for one in record.contributions]
    return admin_pb2.GetRoundResponse(round=written, participations=parts)


def _write_contribution(one: Contribution, late_update: str) -> admin_pb2.Participation:
    return admin_pb2.Participation(
        client_name=one.client_name,
        rank=one.rank,
        outcome=messages.OUTCOMES[Outcome(one.outcome)],
        reason=one.reason,
        epochs=one.epochs or 0,
        committed_size=one.upload_bytes,
        body_size_bytes=one.upload_bytes,
        num_examples=one.num_examples or 0,
        weight=one.weight or 0.0,
        metrics=wire.write_metrics(one.metrics, one.undefined),
        duration=messages.write_duration(one.seconds or 0.0),
        late_update=late_update,
    )
