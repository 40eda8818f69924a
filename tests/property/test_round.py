"""A round under any order of words, uploads and time: every offer ends exactly once, and the round always closes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedserver.coordinator.effects import Cancel, Confirm, Effect, RenewLease, Withdraw
from fedserver.coordinator.participation import Stage
from fedserver.coordinator.round import Round
from fedstream.errors import RoundClosed
from fedstream.outcomes import Outcome
from fedstream.progress import Phase, Progress
from tests.unit.fedserver.coordinator.rounds import OPENED, PLAN, open_round, part_of

pytestmark = pytest.mark.numpy_task

LEGAL = {
    Stage.OFFERED: {Stage.OFFERED, Stage.WORKING, Stage.ENDED},
    Stage.WORKING: {Stage.WORKING, Stage.FINISHING, Stage.ENDED},
    Stage.FINISHING: {Stage.FINISHING, Stage.WORKING, Stage.ENDED},
    Stage.ENDED: {Stage.ENDED},
}
"""As the docstring of `Stage` says."""

CLIENTS = st.sampled_from("abcdef")
"""Some of them are not in the round."""


class AnyRound(RuleBasedStateMachine):
    """Whatever can happen to a round, in any order, as the driver would let it: time never passes without a tick."""

    @initialize(
        clients=st.integers(1, 5).map(lambda number: "abcde"[:number]),
        min_clients=st.integers(1, 4),
        reporting_goal=st.integers(1, 6),
        timeout_seconds=st.sampled_from([5.0, 30.0]),
        longest_seconds=st.sampled_from([0.0, 60.0]),
        lease_seconds=st.sampled_from([2.0, 10.0, 100.0]),
    )
    def open(self, clients: str, **rules: Any) -> None:
        self.now = OPENED
        self.round: Round = open_round(clients, self.now, **rules)
        self.limit = OPENED + max(rules["timeout_seconds"], rules["longest_seconds"])
        self.seen = {part.client: (part.stage, part.outcome) for part in self.round.participations}

    def _say(self, act: Callable[[], list[Effect]], *kinds: type) -> None:
        for effect in act():
            assert isinstance(effect, kinds), effect
        self._drive()

    def _upload(self, act: Callable[[], object]) -> None:
        try:
            act()
        except RoundClosed as error:
            assert error.metadata == {"round": "7"}  # noqa: PT017 - it may also be taken
        self._drive()

    def _drive(self) -> None:
        """What the driver does whenever something has changed."""
        if self.round.closed is not None:
            return
        for effect in self.round.tick(self.now):
            assert isinstance(effect, Cancel)
            assert part_of(self.round, effect.client).outcome is Outcome.EXPIRED
        reason = self.round.why_closing()
        if reason is not None:
            self._close(reason)

    def _close(self, reason: str) -> None:
        outstanding = [part.client for part in self.round.participations if part.is_outstanding]
        effects = self.round.close(reason, self.now)
        assert [effect.client for effect in effects] == outstanding
        assert all(isinstance(effect, Cancel) for effect in effects)

    # What clients say.

    @rule(client=CLIENTS, offered_to=st.none() | CLIENTS)
    def accept(self, client: str, offered_to: str | None) -> None:
        self._say(lambda: self.round.accept(client, f"offer-{offered_to or client}", self.now), Confirm, Withdraw)

    @rule(client=CLIENTS)
    def decline(self, client: str) -> None:
        self._say(lambda: self.round.decline(client, f"offer-{client}", "busy", self.now))

    @rule(
        client=CLIENTS,
        epochs=st.none() | st.integers(0, 9),
        seconds=st.none() | st.floats(-10, 90) | st.sampled_from([math.inf, math.nan]),
    )
    def counter(self, client: str, epochs: int | None, seconds: float | None) -> None:
        def act() -> list[Effect]:
            return self.round.counter(client, f"offer-{client}", epochs, seconds, "slow", self.now)

        self._say(act, Confirm, Withdraw)

    @rule(client=CLIENTS)
    def progress(self, client: str) -> None:
        report = Progress(Phase.TRAINING, 1, 2, 0.5)
        self._say(lambda: self.round.progress(client, f"offer-{client}", report, self.now), RenewLease, Cancel)

    @rule(client=CLIENTS)
    def fail(self, client: str) -> None:
        self._say(lambda: self.round.fail(client, f"offer-{client}", "broken", self.now))

    @rule(client=CLIENTS)
    def leave(self, client: str) -> None:
        self._say(lambda: self.round.leave(client, "", self.now))

    # What happens to uploads.

    def _client_in_round(self, pick: int) -> str:
        return self.round.participations[pick % len(self.round.participations)].client

    @rule(pick=st.integers(0, 4), committed=st.integers(0, 10))
    def upload_progress(self, pick: int, committed: int) -> None:
        upload_id = f"upload-{self._client_in_round(pick)}"
        self._upload(lambda: self.round.upload_progress(upload_id, committed, 10, self.now))

    @rule(pick=st.integers(0, 4))
    def begin_finish(self, pick: int) -> None:
        self._upload(lambda: self.round.begin_finish(f"upload-{self._client_in_round(pick)}"))

    @rule(pick=st.integers(0, 4))
    def abandon_finish(self, pick: int) -> None:
        self._upload(lambda: self.round.abandon_finish(f"upload-{self._client_in_round(pick)}", self.now))

    @rule(pick=st.integers(0, 4))
    def complete(self, pick: int) -> None:
        self._upload(lambda: self.round.complete(f"upload-{self._client_in_round(pick)}", 1, {}, self.now))

    @rule(pick=st.integers(0, 4))
    def quarantine(self, pick: int) -> None:
        self._upload(lambda: self.round.quarantine(f"upload-{self._client_in_round(pick)}", "unfit", self.now))

    # What time and the coordinator do.

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._drive()

    @precondition(lambda self: math.isfinite(self.round.next_event()))
    @rule()
    def wait_for_the_next_event(self) -> None:
        self.now = max(self.now, self.round.next_event())
        self._drive()

    @precondition(lambda self: self.round.closed is None)
    @rule(likely=st.integers(0, 9))
    def stop(self, likely: int) -> None:
        if likely == 0:
            self._close("stopped by the coordinator")

    # What always holds.

    @invariant()
    def counts_add_up(self) -> None:
        counts = self.round.counts
        assert counts.offered == len(self.round.participations)
        assert counts.offered == counts.outstanding + sum(counts.by_outcome.values())
        assert set(counts.by_outcome) == set(Outcome)

    @invariant()
    def transitions_are_legal_and_an_end_is_an_end(self) -> None:
        for part in self.round.participations:
            stage, outcome = self.seen[part.client]
            assert part.stage in LEGAL[stage], (part.client, stage, part.stage)
            assert (part.stage is Stage.ENDED) == (part.outcome is not None) == (part.ended_at is not None)
            if outcome is not None and part.outcome is not outcome:
                assert (outcome, part.outcome) == (Outcome.COMPLETED, Outcome.QUARANTINED)
            if part.outcome not in (None, Outcome.COMPLETED):
                assert part.reason
            self.seen[part.client] = (part.stage, part.outcome)

    @invariant()
    def nobody_is_outstanding_after_the_close(self) -> None:
        if self.round.closed is not None:
            assert self.round.counts.outstanding == 0

    @invariant()
    def plans_and_deadlines_stay_within_what_was_offered(self) -> None:
        for part in self.round.participations:
            assert 1 <= part.plan.epochs <= PLAN.epochs
            assert part.deadline <= self.limit

    @invariant()
    def open_round_waits_for_something_in_the_future_or_for_a_verification(self) -> None:
        verifying = any(part.stage is Stage.FINISHING for part in self.round.participations)
        if self.round.closed is None and not verifying:
            assert self.now < self.round.next_event() <= self.round.deadline <= self.limit

    def teardown(self) -> None:
        """From wherever it is, once verifications end, the round closes by its deadline with nobody saying a word."""
        if not hasattr(self, "round"):
            return
        for part in self.round.participations:
            if part.stage is Stage.FINISHING:
                self.round.abandon_finish(part.upload_id, self.now)
        late = max(self.now, self.limit)
        for _ in range(len(self.round.participations) + 1):
            self._drive()
            if self.round.closed is not None:
                break
            self.now = self.round.next_event()
        assert self.round.closed is not None
        assert self.round.closed <= late


TestAnyRound = AnyRound.TestCase
TestAnyRound.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
