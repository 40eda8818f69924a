"""The codec between the negotiation's messages and the client's own types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration

from fedclient.events import (
    Cancellation,
    Confirmation,
    Declined,
    Event,
    FederationOnOffer,
    FederationOutcome,
    LeaseRenewal,
    Offer,
    RoundOutcome,
    SchemaQuery,
    TaskOnOffer,
    Waiting,
    Welcome,
    Withdrawal,
)
from fedclient.reply import Accept, Counter, Decline, Reply, SiteLimits
from fedclient.requests import CHUNK_BYTES
from fedstream import limits, wire
from fedstream.encodings import Encoding
from fedstream.progress import Progress
from fedstream.schema import ModelSchema, TaskMeaning, TensorDifference
from fedstream.v1 import common_pb2, negotiation_pb2

_MAX_SETTING_BYTES = 64 << 10


def read_federation(message: negotiation_pb2.DescribeTaskResponse) -> FederationOnOffer:
    """What the federation learns, and how it talks.

    Raises:
        InvalidRequest: a part of it is malformed.
    """
    return FederationOnOffer(
        task=TaskOnOffer(
            limits.clip_reason(message.federation_name),
            limits.clip_reason(message.task_name),
            {
                limits.clip_reason(name): limits.clip_reason(value, _MAX_SETTING_BYTES)
                for name, value in message.task_settings.items()
            },
        ),
        protocol=(message.protocol.min, message.protocol.max),
        meaning=wire.read_meaning(message.meaning) if message.HasField("meaning") else None,
        schema_sha256=message.schema_sha256,
        encodings=tuple(wire.read_encodings(message.capabilities.encodings)),
        server_time=message.server_time.seconds + message.server_time.nanos / 1e9
        if message.HasField("server_time")
        else None,
    )


def read_event(message: negotiation_pb2.NegotiateResponse) -> Event | None:
    """What the server said; `None` for a kind that this version does not know, which is to be ignored.

    Raises:
        InvalidRequest: a part of it is malformed.
    """
    kind = message.WhichOneof("kind")
    reader = _READERS.get(kind or "")
    return reader(getattr(message, kind)) if kind is not None and reader is not None else None


def _read_welcome(message: negotiation_pb2.Welcome) -> Welcome:
    chunk = message.max_chunk_bytes or limits.DEFAULT_CHUNK_BYTES
    window = message.window_bytes or limits.WINDOW_BYTES
    best, *_ = wire.read_encodings(message.encodings)
    name = limits.clip_reason(message.client_name)
    return Welcome(message.protocol, min(chunk, limits.MAX_CHUNK_BYTES), window, best, message.rounds, name)


def _read_declined(message: negotiation_pb2.Declined) -> Declined:
    return Declined(
        message=_shown(message.message),
        differences=tuple(map(_read_difference, message.differences[: limits.MAX_SHOWN_DIFFERENCES])),
        more_differences=message.more_differences,
        server_meaning=wire.read_meaning(message.server_meaning) if message.HasField("server_meaning") else None,
        client_meaning=wire.read_meaning(message.client_meaning) if message.HasField("client_meaning") else None,
    )


def _read_difference(message: negotiation_pb2.TensorDifference) -> TensorDifference:
    mine = wire.read_spec(message.client) if message.HasField("client") else None
    yours = wire.read_spec(message.server) if message.HasField("server") else None
    return TensorDifference(mine, yours)


def _read_offer(message: negotiation_pb2.Offer) -> Offer:
    return Offer(
        offer_id=message.offer_id,
        upload_id=message.upload_id,
        round=message.round,
        base=wire.read_model_ref(message.base_model),
        plan=wire.read_plan(message.plan),
        time_remaining_seconds=_seconds(message.time_remaining),
        lease_seconds=_seconds(message.lease),
    )


def _shown(text: str) -> str:
    """The server's words as they may stand in a terminal and a log."""
    return limits.clip_reason(text)


def _read_round_outcome(message: negotiation_pb2.RoundOutcome) -> RoundOutcome:
    # An outcome that a later version adds has a number, but no name here.
    known = message.outcome and message.outcome in negotiation_pb2.Outcome.values()
    outcome = negotiation_pb2.Outcome.Name(message.outcome).removeprefix("OUTCOME_").lower() if known else ""
    return RoundOutcome(
        round=message.round,
        succeeded=message.succeeded,
        reason=_shown(message.reason),
        outcome=outcome,
        outcome_reason=_shown(message.outcome_reason),
        global_model=wire.read_model_ref(message.global_model) if message.HasField("global_model") else None,
        metrics=wire.read_metrics(message.metrics),
    )


def _read_confirmation(message: negotiation_pb2.Confirmation) -> Confirmation:
    plan = wire.read_plan(message.plan)
    return Confirmation(message.offer_id, plan, _seconds(message.time_remaining), _seconds(message.lease))


def _read_federation_outcome(message: negotiation_pb2.FederationOutcome) -> FederationOutcome:
    last, best = wire.read_model_ref(message.last_model), wire.read_model_ref(message.best_model)
    return FederationOutcome(_shown(message.reason), last, best, wire.read_metrics(message.metrics))


_READERS: Mapping[str, Callable[[Any], Event]] = {
    "welcome": _read_welcome,
    "declined": _read_declined,
    "schema_query": lambda _: SchemaQuery(),
    "waiting": lambda message: Waiting(_shown(message.reason)),
    "offer": _read_offer,
    "confirm": _read_confirmation,
    "withdraw": lambda message: Withdrawal(message.offer_id, _shown(message.reason)),
    "lease_renewal": lambda message: LeaseRenewal(message.offer_id, _seconds(message.lease)),
    "cancel": lambda message: Cancellation(message.offer_id, _shown(message.reason)),
    "round_outcome": _read_round_outcome,
    "federation_outcome": _read_federation_outcome,
}


def write_hello(
    name: str,
    schema: ModelSchema,
    meaning: TaskMeaning,
    num_examples: int,
    site_limits: SiteLimits,
    epoch_seconds: float | None,
    software: str,
    synthetic_data: bool,
) -> negotiation_pb2.NegotiateRequest:
    """The first message of a stream."""
    longest = site_limits.max_training_seconds
    hello = negotiation_pb2.Hello(
        protocol=common_pb2.ProtocolRange(min=limits.PROTOCOL_VERSION, max=limits.PROTOCOL_VERSION),
        client_name=name,
        schema_sha256=schema.digest(),
        meaning=wire.write_meaning(meaning),
        capabilities=common_pb2.Capabilities(encodings=wire.write_encodings(Encoding), max_chunk_bytes=CHUNK_BYTES),
        num_examples=num_examples,
        epoch_duration=None if epoch_seconds is None else _duration(epoch_seconds),
        limits=negotiation_pb2.SiteLimits(
            max_epochs=site_limits.max_epochs, max_training_time=None if longest is None else _duration(longest)
        ),
        software=software,
        synthetic_data=synthetic_data,
    )
    return negotiation_pb2.NegotiateRequest(hello=hello)


def write_schema(schema: ModelSchema) -> list[negotiation_pb2.NegotiateRequest]:
    """The schema, in parts."""
    parts = list(wire.schema_parts(schema)) or [[]]
    return [
        negotiation_pb2.NegotiateRequest(
            schema_part=negotiation_pb2.SchemaPart(tensors=part, last=number == len(parts))
        )
        for number, part in enumerate(parts, start=1)
    ]


def write_reply(offer_id: str, reply: Reply) -> negotiation_pb2.NegotiateRequest:
    """The answer to an offer."""
    match reply:
        case Accept():
            return negotiation_pb2.NegotiateRequest(accept=negotiation_pb2.Acceptance(offer_id=offer_id))
        case Decline(reason):
            refusal = negotiation_pb2.Refusal(offer_id=offer_id, reason=limits.clip_reason(reason))
            return negotiation_pb2.NegotiateRequest(decline=refusal)
        case Counter(epochs, seconds_needed, reason):
            counter = negotiation_pb2.CounterOffer(
                offer_id=offer_id,
                epochs=epochs,
                time_needed=None if seconds_needed is None else _duration(seconds_needed),
                reason=limits.clip_reason(reason),
            )
            return negotiation_pb2.NegotiateRequest(counter_offer=counter)


def write_progress(offer_id: str, progress: Progress) -> negotiation_pb2.NegotiateRequest:
    """A sign of progress."""
    message = negotiation_pb2.Progress(
        offer_id=offer_id,
        phase=wire.write_phase(progress.phase),
        epoch=progress.epoch,
        epochs=progress.epochs,
        fraction=min(max(progress.fraction, 0.0), 1.0),
        metrics=wire.write_metrics(progress.metrics, progress.undefined),
    )
    return negotiation_pb2.NegotiateRequest(progress=message)


def write_failure(offer_id: str, reason: str) -> negotiation_pb2.NegotiateRequest:
    """The client could not do what it had agreed to."""
    failure = negotiation_pb2.Failure(offer_id=offer_id, reason=limits.clip_reason(reason))
    return negotiation_pb2.NegotiateRequest(failure=failure)


def write_leave(reason: str) -> negotiation_pb2.NegotiateRequest:
    """The client leaves."""
    return negotiation_pb2.NegotiateRequest(leave=negotiation_pb2.Leave(reason=limits.clip_reason(reason)))


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration
