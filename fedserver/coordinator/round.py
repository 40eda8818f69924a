"""One round, from its offers to its close: a state machine over the participations of a cohort.

A round closes when its reporting goal is met, when nobody is outstanding, when it can no longer succeed, or at its
deadline. It succeeds with at least `min_clients` updates. Messages about offers that have ended, or that never were,
change nothing: they were on their way when the decision fell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedserver.coordinator.effects import Cancel, Confirm, Effect, MakeOffer, RenewLease, Withdraw
from fedserver.coordinator.participation import OutcomeCounts, Participation, Stage, count_outcomes
from fedstream.encodings import Encoding
from fedstream.errors import RoundClosed, UnknownUpload
from fedstream.manifest import ModelRef
from fedstream.outcomes import Outcome
from fedstream.plan import Plan
from fedstream.progress import Phase, Progress

COMING_BACK_SECONDS = 40.0
"""What a client that has lost its server needs to find it: between two tries it waits for 30 s and jitter at most."""


@dataclass(frozen=True, slots=True)
class RoundRules:
    """When a round closes and succeeds. Spans in seconds.

    `longest_seconds` bounds what a counter-offer may ask for; `timeout_seconds` is what a client gets without one.
    `update_encoding` is what its updates may travel in, beside raw. `plan` is the common one of all offers; `None` in a
    round that an earlier version has opened.
    """

    min_clients: int
    reporting_goal: int
    timeout_seconds: float
    longest_seconds: float
    lease_seconds: float
    update_encoding: Encoding = Encoding.RAW
    plan: Plan | None = None


@dataclass(frozen=True, slots=True)
class Picked:
    """One client of the cohort, and what it is to be offered under which names; its place among them is its rank."""

    client: str
    plan: Plan
    claimed_examples: int
    offer_id: str
    upload_id: str


class Round:
    """The state of one round. Not for use by several threads at once.

    Args:
        number: of the round, from 1.
        base: the model that clients start from.
        rules: when it closes.
        participations: by rank.
        opened: when it opened.
    """

    def __init__(
        self, number: int, base: ModelRef, rules: RoundRules, participations: Sequence[Participation], opened: float
    ) -> None:
        self.number = number
        self.base = base
        self.rules = rules
        self.opened = opened
        self.closed: float | None = None
        self.reason = ""
        self._participations = list(participations)
        self._by_client = {participation.client: participation for participation in participations}
        self._by_upload = {participation.upload_id: participation for participation in participations}

    @classmethod
    def open(cls, number: int, base: ModelRef, rules: RoundRules, cohort: Sequence[Picked], now: float) -> Round:
        """A new round, in which everybody of the cohort has an offer.

        Raises:
            ValueError: the cohort is empty.
        """
        if not cohort:
            raise ValueError("a round is opened for at least one client")
        parts = [_offered(rank, picked, rules, now) for rank, picked in enumerate(cohort)]
        return cls(number, base, rules, parts, now)

    # What can be asked of a round.

    @property
    def participations(self) -> Sequence[Participation]:
        """By rank."""
        return self._participations

    @property
    def deadline(self) -> float:
        """When the round closes at the latest: the last deadline among those at work."""
        outstanding = [part.deadline for part in self._participations if part.is_outstanding]
        return max(outstanding, default=self.opened + self.rules.timeout_seconds)

    @property
    def counts(self) -> OutcomeCounts:
        """How many offers ended how, so far."""
        return count_outcomes(self._participations)

    @property
    def completed(self) -> list[Participation]:
        """Those whose update is in, by rank."""
        return [part for part in self._participations if part.outcome is Outcome.COMPLETED]

    @property
    def succeeded(self) -> bool:
        """Whether there are enough updates for a new global model."""
        return len(self.completed) >= self.rules.min_clients

    @property
    def is_verifying(self) -> bool:
        """Whether an update is being verified; meanwhile the round must not close."""
        return any(part.stage is Stage.FINISHING for part in self._participations)

    def of_client(self, client: str) -> Participation | None:
        """The client's part in this round, if it has one."""
        return self._by_client.get(client)

    def of_upload(self, upload_id: str) -> Participation:
        """Whose upload it is.

        Raises:
            UnknownUpload: no upload of this round has that id.
        """
        found = self.find_upload(upload_id)
        if found is None:
            raise UnknownUpload("no upload of that id is expected; wait for the next offer")
        return found

    def find_upload(self, upload_id: str) -> Participation | None:
        """Whose upload it is; `None` if it is none of this round."""
        return self._by_upload.get(upload_id)

    def next_event(self) -> float:
        """The next instant at which `tick` may have something to do; infinite if nobody is outstanding.

        An update that is being verified counts by its lease alone: the deadline cannot end it, but should the
        verification fail, its client is at work again.
        """
        times = [part.lease_until for part in self._participations if part.is_outstanding]
        times += [part.deadline for part in self._participations if part.stage in (Stage.OFFERED, Stage.WORKING)]
        return min(times, default=math.inf)

    def offer_of(self, participation: Participation) -> MakeOffer:
        """The offer, to be sent at first or again."""
        return MakeOffer(self.number, self.base, participation, self.rules.lease_seconds)

    # What clients say.

    def accept(self, client: str, offer_id: str, now: float) -> list[Effect]:
        """A client takes its offer; it may say so again after a reconnect."""
        part = self._standing(client, offer_id)
        if part is None:
            return [Withdraw(client, offer_id, "the offer no longer stands")]
        self._seen(part, now)
        if part.stage is Stage.OFFERED:
            part.stage = Stage.WORKING
        return [Confirm(part, self.rules.lease_seconds)]

    def decline(self, client: str, offer_id: str, reason: str, now: float) -> list[Effect]:
        """A client turns its offer down."""
        part = self._interruptible(client, offer_id)
        if part is not None:
            part.end(Outcome.DECLINED, reason or "no reason given", now)
        return []

    def counter(
        self, client: str, offer_id: str, epochs: int | None, seconds_needed: float | None, reason: str, now: float
    ) -> list[Effect]:
        """A client would take part with fewer epochs, or with more time from now on.

        Fewer epochs are always fine, more time as far as the round's longest span goes; else the offer is withdrawn.
        A client that lost its memory is offered the same again, and may counter again.
        """
        part = self._interruptible(client, offer_id)
        if part is None:
            return self.accept(client, offer_id, now)
        limit = max(part.deadline, self.opened + self.rules.longest_seconds)
        if seconds_needed is not None and now + seconds_needed > limit:
            refusal = f"needs {seconds_needed:.0f} s, but this round is over in {limit - now:.0f} s at the latest"
            part.end(Outcome.WITHDRAWN, f"{refusal} ({reason})" if reason else refusal, now)
            return [Withdraw(client, offer_id, part.reason)]
        if epochs is not None:
            part.plan = replace(part.plan, epochs=max(1, min(epochs, part.plan.epochs)))
        if seconds_needed is not None:
            part.deadline = max(part.deadline, now + seconds_needed)
        return self.accept(client, offer_id, now)

    def progress(self, client: str, offer_id: str, report: Progress, now: float) -> list[Effect]:
        """A sign of progress renews the lease."""
        part = self._standing(client, offer_id)
        if part is None:
            return [Cancel(client, offer_id, self._why_over(client, offer_id))]
        self._seen(part, now)
        part.progress = report
        return [RenewLease(client, offer_id, self.rules.lease_seconds)]

    def fail(self, client: str, offer_id: str, reason: str, now: float) -> list[Effect]:
        """A client could not do what it had agreed to."""
        part = self._interruptible(client, offer_id)
        if part is not None:
            part.end(Outcome.FAILED, reason or "no reason given", now)
        return []

    def leave(self, client: str, reason: str, now: float) -> list[Effect]:
        """A client leaves the federation; what it had promised and not sent counts as failed."""
        part = self._by_client.get(client)
        return self.fail(client, part.offer_id, f"left: {reason}" if reason else "left", now) if part else []

    # What happens to uploads.

    def require_open(self, upload_id: str) -> Participation:
        """The participation whose upload may go on.

        Raises:
            UnknownUpload: no upload of this round has that id.
            RoundClosed: its part in the round is over.
        """
        return self._in_hand(upload_id, Stage.WORKING, Stage.FINISHING)

    def upload_progress(self, upload_id: str, committed_size: int, body_size_bytes: int, now: float) -> None:
        """Bytes of an update became durable. That renews its lease, since its client may have had to wait for it.

        It is no sign of life: when a connection is found dead, what had come through it before is still committed.
        """
        part = self.of_upload(upload_id)
        part.committed_size, part.body_size_bytes = committed_size, body_size_bytes
        fraction = committed_size / body_size_bytes if body_size_bytes else 1.0
        part.progress = replace(part.progress, phase=Phase.UPLOADING, fraction=fraction)
        part.lease_until = max(part.lease_until, now + self.rules.lease_seconds)  # it may have longer, to come back

    def heard_from_upload(self, upload_id: str, now: float) -> None:
        """Something came from a client for its upload, bytes or an empty chunk."""
        part = self.find_upload(upload_id)
        if part is not None:
            self._seen(part, now)

    def begin_finish(self, upload_id: str) -> Participation:
        """An upload is being verified; until that ends, the round does not close."""
        part = self.require_open(upload_id)
        part.stage = Stage.FINISHING
        return part

    def abandon_finish(self, upload_id: str, now: float) -> None:
        """The check did not come to its end: bytes must be sent again, or the disk refused. The client comes again."""
        part = self.of_upload(upload_id)
        if part.stage is Stage.FINISHING:
            part.stage = Stage.WORKING
            self._seen(part, now)

    def complete(
        self,
        upload_id: str,
        num_examples: int,
        metrics: Mapping[str, float | None],
        now: float,
        undefined: Mapping[str, str] | None = None,
    ) -> None:
        """An update is stored and in the aggregate. `undefined` is why metrics have no value, by name.

        Raises:
            UnknownUpload: no upload of this round has that id.
            RoundClosed: the round was closed while the update was being verified.
        """
        part = self._in_hand(upload_id, Stage.FINISHING)
        part.num_examples, part.metrics, part.undefined = num_examples, metrics, undefined or {}
        part.end(Outcome.COMPLETED, "", now)

    def quarantine(self, upload_id: str, reason: str, now: float) -> None:
        """An update is kept aside, at once or by the checks against the cohort.

        Raises:
            UnknownUpload: no upload of this round has that id.
            RoundClosed: as `complete`.
        """
        part = self.of_upload(upload_id)
        if part.outcome is not Outcome.COMPLETED:
            part = self._in_hand(upload_id, Stage.FINISHING)
        part.end(Outcome.QUARANTINED, reason, now)

    def reopen(self, upload_id: str, now: float) -> None:
        """A stored update was found damaged: its client is asked for it again, also where the round had closed."""
        part = self.of_upload(upload_id)
        part.stage, part.outcome, part.reason, part.ended_at = Stage.WORKING, None, "", None
        part.deadline = max(part.deadline, now + self.rules.timeout_seconds)
        part.last_seen, part.lease_until = now, now + self.rules.lease_seconds
        self.closed, self.reason = None, ""

    # What time does.

    def postpone(self, seconds: float) -> None:
        """Give everybody who is outstanding so much more time: the server could not have taken an update meanwhile."""
        for part in self._participations:
            if part.is_outstanding:
                part.deadline += seconds
                part.lease_until += seconds

    def resume(self, seconds_lost: float, now: float) -> None:
        """The server stood still for so long: nobody loses time for it, and each has a whole lease to come back."""
        self.postpone(seconds_lost)
        for part in self._participations:
            if part.is_outstanding:
                part.lease_until = max(part.lease_until, now + self.rules.lease_seconds)

    def tick(self, now: float) -> list[Effect]:
        """Give up on clients whose lease or deadline has passed."""
        effects: list[Effect] = []
        for part in self._participations:
            if part.stage not in (Stage.OFFERED, Stage.WORKING):
                continue
            if now >= part.deadline:
                effects += self._expire(part, "the deadline passed", now)
            elif now >= part.lease_until:
                silence = f"no sign of life for {now - part.last_seen:.0f} s"
                effects += self._expire(part, silence, now)
        return effects

    def why_closing(self, num_unfit: int = 0) -> str | None:
        """Why the round should close now, or `None` if it should go on.

        `num_unfit` is how many of the updates that are in would be left out by the checks against the cohort, if the
        round closed now. They do not count for the reporting goal: the round could close on them, leave them out, and
        fail for want of an update that is still being worked on.
        """
        counts = self.counts
        done = counts[Outcome.COMPLETED]
        if self.is_verifying:
            return None
        if done - num_unfit >= self.rules.reporting_goal:
            return f"reporting goal of {self.rules.reporting_goal} reached"
        if counts.outstanding == 0:
            return "every client has answered"
        if done + counts.outstanding < self.rules.min_clients:
            return f"{self.rules.min_clients} updates can no longer be reached"
        return None

    def close(self, reason: str, now: float) -> list[Effect]:
        """End what is outstanding and settle whether the round succeeded."""
        effects: list[Effect] = []
        for part in self._participations:
            if part.is_outstanding:
                part.end(Outcome.CANCELLED, f"round {self.number} closed: {reason}", now)
                effects.append(Cancel(part.client, part.offer_id, part.reason))
        self.closed, self.reason = now, reason
        return effects

    # Helpers.

    def _standing(self, client: str, offer_id: str) -> Participation | None:
        part = self._by_client.get(client)
        return part if part is not None and part.offer_id == offer_id and part.is_outstanding else None

    def _interruptible(self, client: str, offer_id: str) -> Participation | None:
        # Once its update is whole with the server, the verification decides, not what the client says meanwhile.
        part = self._standing(client, offer_id)
        return part if part is not None and part.stage is not Stage.FINISHING else None

    def _in_hand(self, upload_id: str, *stages: Stage) -> Participation:
        part = self.of_upload(upload_id)
        if part.stage not in stages:
            why = part.reason or ("the offer was not accepted" if part.stage is Stage.OFFERED else "it is in already")
            raise RoundClosed(f"round {self.number} does not wait for this update: {why}", round=self.number)
        return part

    def _why_over(self, client: str, offer_id: str) -> str:
        part = self._by_client.get(client)
        return part.reason if part is not None and part.offer_id == offer_id and part.reason else "the round is over"

    def _seen(self, part: Participation, now: float) -> None:
        part.last_seen, part.lease_until, part.heard = now, now + self.rules.lease_seconds, True

    def _expire(self, part: Participation, reason: str, now: float) -> list[Effect]:
        part.end(Outcome.EXPIRED, reason, now)
        return [Cancel(part.client, part.offer_id, reason)]


def _offered(rank: int, picked: Picked, rules: RoundRules, now: float) -> Participation:
    return Participation(
        client=picked.client,
        rank=rank,
        offer_id=picked.offer_id,
        upload_id=picked.upload_id,
        plan=picked.plan,
        claimed_examples=picked.claimed_examples,
        offered_at=now,
        deadline=now + rules.timeout_seconds,
        lease_until=now + rules.lease_seconds,
        last_seen=now,
    )
