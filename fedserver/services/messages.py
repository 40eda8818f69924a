"""The server's decisions as protobuf messages, and clients' messages as the domain's types."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import singledispatch
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from fedserver.clock import Clock, wall_time_of
from fedserver.coordinator.effects import (
    Cancel,
    Confirm,
    Effect,
    MakeOffer,
    RenewLease,
    TellFederationOutcome,
    TellRoundOutcome,
    TellWaiting,
    Withdraw,
)
from fedserver.coordinator.population import Introduction
from fedserver.handshake import Decline
from fedstream import limits, wire
from fedstream.errors import InvalidRequest
from fedstream.outcomes import Outcome
from fedstream.progress import Progress
from fedstream.v1 import negotiation_pb2

OUTCOMES: Mapping[Outcome, negotiation_pb2.Outcome.ValueType] = {
    outcome: negotiation_pb2.Outcome.Value(f"OUTCOME_{outcome.name}") for outcome in Outcome
}


def write_duration(seconds: float) -> Duration:
    """A span; never negative, so that nobody is asked to be done before now."""
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=max(0.0, seconds)))
    return duration


def write_instant(clock: Clock, instant: float) -> Timestamp:
    """An instant of the steady clock, for people."""
    timestamp = Timestamp()
    timestamp.FromDatetime(wall_time_of(clock, instant))
    return timestamp


def write_unix_time(seconds: float) -> Timestamp:
    """A wall-clock time."""
    timestamp = Timestamp()
    timestamp.FromNanoseconds(round(seconds * 1e9))
    return timestamp


def write_decline(decline: Decline) -> negotiation_pb2.NegotiateResponse:
    """Why a client cannot take part."""
    declined = negotiation_pb2.Declined(
        reason=negotiation_pb2.DeclineReason.Value(f"DECLINE_REASON_{decline.reason.name}"),
        message=decline.message,
        more_differences=decline.more_differences,
    )
    for difference in decline.differences:
        declined.differences.add(
            server=wire.write_spec(difference.mine) if difference.mine else None,
            client=wire.write_spec(difference.yours) if difference.yours else None,
        )
    if decline.meanings is not None:
        ours, theirs = decline.meanings
        declined.server_meaning.CopyFrom(wire.write_meaning(ours))
        declined.client_meaning.CopyFrom(wire.write_meaning(theirs))
    return negotiation_pb2.NegotiateResponse(declined=declined)


@singledispatch
def write_effect(effect: Effect, clock: Clock) -> negotiation_pb2.NegotiateResponse:
    """What a state machine wants said, as a message."""
    raise TypeError(f"no message for {effect!r}")


@write_effect.register
def _(effect: MakeOffer, clock: Clock) -> negotiation_pb2.NegotiateResponse:
    part = effect.participation
    offer = negotiation_pb2.Offer(
        offer_id=part.offer_id,
        upload_id=part.upload_id,
        round=effect.round_number,
        base_model=wire.write_model_ref(effect.base),
        plan=wire.write_plan(part.plan),
        deadline=write_instant(clock, part.deadline),
        time_remaining=write_duration(part.deadline - clock.monotonic()),
        lease=write_duration(effect.lease_seconds),
    )
    return negotiation_pb2.NegotiateResponse(offer=offer)


@write_effect.register
def _(effect: Confirm, clock: Clock) -> negotiation_pb2.NegotiateResponse:
    part = effect.participation
    confirmation = negotiation_pb2.Confirmation(
        offer_id=part.offer_id,
        plan=wire.write_plan(part.plan),
        deadline=write_instant(clock, part.deadline),
        time_remaining=write_duration(part.deadline - clock.monotonic()),
        lease=write_duration(effect.lease_seconds),
    )
    return negotiation_pb2.NegotiateResponse(confirm=confirmation)


@write_effect.register
def _(effect: Withdraw, clock: Clock) -> negotiation_pb2.NegotiateResponse:
    withdrawal = negotiation_pb2.Withdrawal(offer_id=effect.offer_id, reason=effect.reason)
    return negotiation_pb2.NegotiateResponse(withdraw=withdrawal)


@write_effect.register
def _(effect: RenewLease, clock: Clock) -> negotiation_pb2.NegotiateResponse:
    renewal = negotiation_pb2.LeaseRenewal(offer_id=effect.offer_id, lease=write_duration(effect.lease_seconds))
    return negotiation_pb2.NegotiateResponse(lease_renewal=renewal)


@write_effect.register
def _(effect: Cancel, clock: Clock) -> negotiation_pb2.NegotiateResponse:
    cancellation = negotiation_pb2.Cancellation(offer_id=effect.offer_id, reason=effect.reason)
    return negotiation_pb2.NegotiateResponse(cancel=cancellation)


@write_effect.register
def _(effect: TellWaiting, clock: Clock) -> negotiation_pb2.NegotiateResponse:
    waiting = negotiation_pb2.Waiting(reason=effect.reason, since=write_instant(clock, effect.since))
    return negotiation_pb2.NegotiateResponse(waiting=waiting)


@write_effect.register
def _(effect: TellRoundOutcome, clock: Clock) -> negotiation_pb2.NegotiateResponse:
    outcome = negotiation_pb2.RoundOutcome(
        round=effect.round_number,
        succeeded=effect.succeeded,
        reason=effect.reason,
        outcome=OUTCOMES[effect.outcome] if effect.outcome else negotiation_pb2.OUTCOME_UNSPECIFIED,
        outcome_reason=effect.outcome_reason,
        global_model=wire.write_model_ref(effect.global_model),
        metrics=wire.write_metrics(effect.metrics),
    )
    return negotiation_pb2.NegotiateResponse(round_outcome=outcome)


@write_effect.register
def _(effect: TellFederationOutcome, clock: Clock) -> negotiation_pb2.NegotiateResponse:
    outcome = negotiation_pb2.FederationOutcome(
        reason=effect.reason,
        last_model=wire.write_model_ref(effect.last),
        best_model=wire.write_model_ref(effect.best),
        metrics=wire.write_metrics(effect.metrics),
    )
    return negotiation_pb2.NegotiateResponse(federation_outcome=outcome)


def read_introduction(hello: negotiation_pb2.Hello) -> Introduction:
    """Who a client says it is. Bounds are checked here, rules in `fedserver.handshake`."""
    if not limits.is_plain_text(hello.software, limits.MAX_CLASS_NAME_BYTES):
        raise InvalidRequest("software is too long or has control characters", field="software")
    return Introduction(
        name=hello.client_name,
        num_examples=hello.num_examples,
        software=hello.software,
        epoch_seconds=read_seconds(hello, "epoch_duration"),
        max_epochs=hello.limits.max_epochs or None,
        synthetic_data=hello.synthetic_data,
        max_training_seconds=read_seconds(hello.limits, "max_training_time"),
    )


_LONGEST_SECONDS = 315_576_000_000
"""That `google.protobuf.Duration` allows: some 10,000 years."""
_NANOS_PER_SECOND = 1_000_000_000


def read_seconds(message: Any, field: str) -> float | None:
    """The span in a field of a message; `None` if there is none.

    Raises:
        InvalidRequest: it is none that a `google.protobuf.Duration` can be, or is below 0.
    """
    if not message.HasField(field):
        return None
    span: Duration = getattr(message, field)
    if abs(span.seconds) > _LONGEST_SECONDS:
        raise InvalidRequest(f"{field} is longer than a span can be", field=field)
    if span.seconds < 0 or not 0 <= span.nanos < _NANOS_PER_SECOND:
        words = f"{field} is no span of 0 or more: it has {span.seconds} seconds and {span.nanos} nanoseconds"
        raise InvalidRequest(words, field=field)
    return span.seconds + span.nanos / _NANOS_PER_SECOND


def check_offer_id(request: negotiation_pb2.NegotiateRequest, kind: str) -> None:
    """Check the offer that a message is about, which the answer repeats.

    Raises:
        InvalidRequest: its id is longer than one can be.
    """
    if len(getattr(getattr(request, kind), "offer_id", "").encode()) > limits.MAX_ID_BYTES:
        raise InvalidRequest(f"an offer_id has at most {limits.MAX_ID_BYTES} bytes", field=f"{kind}.offer_id")


def answer_of_ended_offer(client: str, kind: str, request: negotiation_pb2.NegotiateRequest) -> list[Effect]:
    """What a client is told that speaks of an offer when there is no round, as after a restart between two."""
    reason = "the offer no longer stands"
    match kind:
        case "accept" | "counter_offer":
            return [Withdraw(client, getattr(request, kind).offer_id, reason)]
        case "progress":
            return [Cancel(client, request.progress.offer_id, reason)]
        case _:
            return []


def read_progress(progress: negotiation_pb2.Progress) -> Progress:
    """How far a client says it is; a fraction out of range is brought into it."""
    fraction = progress.fraction if 0.0 <= progress.fraction <= 1.0 else 0.0
    return Progress(
        phase=wire.read_phase(progress.phase),
        epoch=progress.epoch,
        epochs=progress.epochs,
        fraction=fraction,
        metrics=wire.read_metrics(progress.metrics),
        undefined=wire.read_undefined(progress.metrics),
    )


def read_counter_seconds(counter: negotiation_pb2.CounterOffer) -> float | None:
    """The time a counter-offer asks for, if it does."""
    return read_seconds(counter, "time_needed")


def read_reason(text: str) -> str:
    """A client's reason as it may be shown."""
    return limits.clip_reason(text)
