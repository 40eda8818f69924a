"""One round, example by example: what clients say, what time does, and why it closes. A moment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from fedserver.coordinator.effects import Cancel, Confirm, Effect, MakeOffer, RenewLease, Withdraw
from fedserver.coordinator.participation import OutcomeCounts, Stage
from fedserver.coordinator.round import Round
from fedstream.errors import RoundClosed, UnknownUpload
from fedstream.outcomes import Outcome
from fedstream.progress import Phase, Progress
from tests.unit.fedserver.coordinator.rounds import BASE, OPENED, PLAN, accept, complete, ends, open_round, part_of

pytestmark = pytest.mark.numpy_task

GONE = "the offer no longer stands"


def counts(offered: int, outstanding: int, **by_outcome: int) -> OutcomeCounts:
    return OutcomeCounts(offered, outstanding, {outcome: by_outcome.get(outcome.value, 0) for outcome in Outcome})


# Opening.


def test_round_opened_has_one_offer_per_client_in_order_of_rank() -> None:
    round_ = open_round("bca")
    facts = [(part.client, part.rank, part.stage, part.deadline, part.lease_until) for part in round_.participations]
    assert facts == [
        ("b", 0, Stage.OFFERED, 1_100.0, 1_010.0),
        ("c", 1, Stage.OFFERED, 1_100.0, 1_010.0),
        ("a", 2, Stage.OFFERED, 1_100.0, 1_010.0),
    ]
    assert (round_.counts, round_.deadline, round_.next_event()) == (counts(3, 3), 1_100.0, 1_010.0)
    assert (round_.closed, round_.succeeded, round_.why_closing()) == (None, False, None)
    part = part_of(round_, "b")
    assert round_.offer_of(part) == MakeOffer(7, BASE, part, 10.0)
    assert round_.offer_of(part).client == "b"


def test_round_is_opened_for_somebody() -> None:
    with pytest.raises(ValueError, match="at least one client"):
        open_round("")


# Every transition of a participation.


def test_offered_and_accepted_is_working_and_confirmed() -> None:
    round_ = open_round()
    assert round_.accept("a", "offer-a", OPENED + 4) == [Confirm(part_of(round_, "a"), 10.0)]
    part = part_of(round_, "a")
    assert (part.stage, part.last_seen, part.lease_until, part.plan) == (Stage.WORKING, 1_004.0, 1_014.0, PLAN)


@pytest.mark.parametrize(("reason", "kept"), [("busy", "busy"), ("", "no reason given")])
def test_offered_and_declined_is_ended(reason: str, kept: str) -> None:
    round_ = open_round()
    assert round_.decline("a", "offer-a", reason, OPENED + 4) == []
    part = part_of(round_, "a")
    assert (part.stage, part.outcome, part.reason, part.ended_at) == (Stage.ENDED, Outcome.DECLINED, kept, 1_004.0)
    assert round_.counts == counts(3, 2, declined=1)


def test_working_and_verifying_is_finishing_and_the_round_waits_for_it() -> None:
    round_ = open_round("a", min_clients=1, reporting_goal=1)
    accept(round_, "a")
    assert round_.begin_finish("upload-a") is part_of(round_, "a")
    assert part_of(round_, "a").stage is Stage.FINISHING
    assert round_.tick(OPENED + 1_000) == []
    assert (round_.why_closing(), round_.counts) == (None, counts(1, 1))


def test_finishing_and_stored_is_completed() -> None:
    round_ = open_round()
    complete(round_, "a", now=OPENED + 5)
    part = part_of(round_, "a")
    assert (part.stage, part.outcome, part.ended_at) == (Stage.ENDED, Outcome.COMPLETED, 1_005.0)
    assert (part.num_examples, part.metrics) == (40, {"loss": 0.5})
    assert (round_.completed, round_.counts) == ([part], counts(3, 2, completed=1))


def test_finishing_and_unfit_is_quarantined() -> None:
    round_ = open_round()
    accept(round_, "a")
    round_.begin_finish("upload-a")
    round_.quarantine("upload-a", "not finite", OPENED + 5)
    assert ends(round_)["a"] == (Outcome.QUARANTINED, "not finite")


def test_finishing_and_found_damaged_is_working_again_with_a_fresh_lease() -> None:
    round_ = open_round()
    accept(round_, "a")
    round_.begin_finish("upload-a")
    assert round_.next_event() == 1_010.0  # so that a lease begun here is noticed in time
    round_.abandon_finish("upload-a", OPENED + 30)
    part = part_of(round_, "a")
    assert (part.stage, part.lease_until, round_.counts) == (Stage.WORKING, 1_040.0, counts(3, 3))


@pytest.mark.parametrize(("found", "deadline"), [(OPENED + 10, OPENED + 110), (OPENED + 500, OPENED + 600)])
def test_completed_and_found_damaged_after_the_close_is_working_again_with_all_its_time(
    found: float, deadline: float
) -> None:
    round_ = open_round("ab")
    complete(round_, "a", "b")
    round_.close("every client has answered", OPENED + 5)
    round_.reopen("upload-a", found)
    part = part_of(round_, "a")
    assert (part.stage, part.outcome, part.reason, part.ended_at) == (Stage.WORKING, None, "", None)
    assert (part.deadline, part.lease_until, part.last_seen) == (deadline, found + 10, found)
    assert (round_.closed, round_.reason, round_.why_closing()) == (None, "", None)
    assert round_.tick(found + 9) == []


def test_completed_and_unlike_the_cohort_is_quarantined_after_the_close() -> None:
    round_ = open_round("ab", reporting_goal=2)
    complete(round_, "a", "b")
    round_.close("reporting goal of 2 reached", OPENED + 6)
    assert round_.succeeded
    round_.quarantine("upload-b", "norm", OPENED + 7)
    assert ends(round_) == {"a": (Outcome.COMPLETED, ""), "b": (Outcome.QUARANTINED, "norm")}
    assert (round_.counts, round_.succeeded) == (counts(2, 0, completed=1, quarantined=1), False)


ENDINGS: dict[Outcome, Callable[[Round], object]] = {
    Outcome.COMPLETED: lambda round_: complete(round_, "a"),
    Outcome.DECLINED: lambda round_: round_.decline("a", "offer-a", "busy", OPENED),
    Outcome.WITHDRAWN: lambda round_: round_.counter("a", "offer-a", None, 9_999.0, "", OPENED),
    Outcome.FAILED: lambda round_: round_.fail("a", "offer-a", "out of memory", OPENED),
    Outcome.EXPIRED: lambda round_: round_.tick(OPENED + 10),
    Outcome.CANCELLED: lambda round_: round_.close("stopped", OPENED),
}


@pytest.mark.parametrize("outcome", ENDINGS)
def test_ended_is_ended_whatever_comes_after(outcome: Outcome) -> None:
    round_ = open_round()
    ENDINGS[outcome](round_)
    part, now = part_of(round_, "a"), OPENED + 20
    before = (part.stage, part.outcome, part.reason, part.ended_at, part.plan, part.deadline)
    assert before[:2] == (Stage.ENDED, outcome)
    assert round_.accept("a", "offer-a", now) == [Withdraw("a", "offer-a", GONE)]
    assert round_.counter("a", "offer-a", 1, 2.0, "", now) == [Withdraw("a", "offer-a", GONE)]
    assert round_.decline("a", "offer-a", "late", now) == []
    assert round_.fail("a", "offer-a", "late", now) == []
    assert round_.leave("a", "late", now) == []
    assert round_.progress("a", "offer-a", Progress(), now) == [
        Cancel("a", "offer-a", part.reason or "the round is over")
    ]
    round_.abandon_finish("upload-a", now)
    for act in (round_.require_open, round_.begin_finish):
        with pytest.raises(RoundClosed, match="round 7 does not wait for this update"):
            act("upload-a")
    with pytest.raises(RoundClosed):
        round_.complete("upload-a", 1, {}, now)
    if outcome is not Outcome.COMPLETED:
        with pytest.raises(RoundClosed):
            round_.quarantine("upload-a", "late", now)
    assert not any(effect.client == "a" for effect in round_.tick(now))
    assert (part.stage, part.outcome, part.reason, part.ended_at, part.plan, part.deadline) == before


@pytest.mark.parametrize(
    "act",
    [
        lambda round_, now: round_.fail("a", "offer-a", "crashed after sending", now),
        lambda round_, now: round_.decline("a", "offer-a", "changed my mind", now),
        lambda round_, now: round_.leave("a", "done here", now),
        lambda round_, now: round_.counter("a", "offer-a", 1, 9_999.0, "", now),
        lambda round_, now: round_.accept("a", "offer-a", now),
        lambda round_, now: round_.progress("a", "offer-a", Progress(Phase.UPLOADING), now),
    ],
    ids=["fail", "decline", "leave", "counter", "accept", "progress"],
)
def test_update_that_is_being_verified_counts_whatever_its_client_says_meanwhile(
    act: Callable[[Round, float], list[Effect]],
) -> None:
    round_ = open_round("a", min_clients=1, reporting_goal=1)
    accept(round_, "a")
    round_.begin_finish("upload-a")
    act(round_, OPENED + 3)
    assert part_of(round_, "a").stage is Stage.FINISHING
    round_.complete("upload-a", 40, {}, OPENED + 4)
    assert (ends(round_), round_.why_closing()) == ({"a": (Outcome.COMPLETED, "")}, "reporting goal of 1 reached")


def test_update_verified_after_the_round_was_stopped_stays_cancelled() -> None:
    round_ = open_round("a", min_clients=1)
    accept(round_, "a")
    round_.begin_finish("upload-a")
    round_.close("stopped by the coordinator", OPENED + 3)
    with pytest.raises(RoundClosed, match="round 7 closed: stopped by the coordinator"):
        round_.complete("upload-a", 40, {}, OPENED + 4)
    round_.abandon_finish("upload-a", OPENED + 4)
    assert ends(round_) == {"a": (Outcome.CANCELLED, "round 7 closed: stopped by the coordinator")}
    assert (round_.succeeded, part_of(round_, "a").num_examples) == (False, 0)


# Answers to offers.


def test_accepting_again_after_a_reconnect_is_confirmed_again_and_renews_the_lease() -> None:
    round_ = open_round()
    round_.counter("a", "offer-a", 2, 120.0, "", OPENED)
    part = part_of(round_, "a")
    again = round_.accept("a", "offer-a", OPENED + 8)
    assert again == [Confirm(part, 10.0)]
    assert (part.plan.epochs, part.deadline, part.lease_until) == (2, 1_120.0, 1_018.0)


@pytest.mark.parametrize(("asked", "agreed"), [(3, 3), (1, 1), (5, 5), (9, 5), (0, 1)])
def test_counter_offer_of_epochs_is_agreed_within_one_and_the_plan(asked: int, agreed: int) -> None:
    round_ = open_round()
    assert round_.counter("a", "offer-a", asked, None, "slow", OPENED + 1) == [Confirm(part_of(round_, "a"), 10.0)]
    part = part_of(round_, "a")
    assert (part.stage, part.plan, part.deadline) == (Stage.WORKING, replace(PLAN, epochs=agreed), 1_100.0)
    assert part_of(round_, "b").plan == PLAN


@pytest.mark.parametrize(("seconds", "deadline"), [(10.0, 1_100.0), (80.0, 1_100.0), (81.0, 1_101.0), (130.0, 1_150.0)])
def test_counter_offer_of_more_time_is_agreed_up_to_the_rounds_longest(seconds: float, deadline: float) -> None:
    round_ = open_round()
    assert round_.counter("a", "offer-a", None, seconds, "slow", OPENED + 20) == [Confirm(part_of(round_, "a"), 10.0)]
    assert (part_of(round_, "a").deadline, round_.deadline) == (deadline, deadline)
    assert part_of(round_, "b").deadline == 1_100.0


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("one epoch takes 200 s", "needs 131 s, but this round is over in 130 s at the latest (one epoch takes 200 s)"),
        ("", "needs 131 s, but this round is over in 130 s at the latest"),
    ],
)
def test_counter_offer_of_too_much_time_is_withdrawn_with_both_spans(reason: str, kept: str) -> None:
    round_ = open_round()
    assert round_.counter("a", "offer-a", 2, 131.0, reason, OPENED + 20) == [Withdraw("a", "offer-a", kept)]
    assert ends(round_)["a"] == (Outcome.WITHDRAWN, kept)
    assert part_of(round_, "a").plan == PLAN


def test_round_closes_at_the_deadline_of_those_that_are_still_at_work() -> None:
    round_ = open_round()
    round_.counter("a", "offer-a", None, 140.0, "slow disk", OPENED)
    assert round_.deadline == OPENED + 140
    round_.fail("a", "offer-a", "", OPENED + 1)
    assert ends(round_)["a"] == (Outcome.FAILED, "no reason given")
    assert round_.deadline == OPENED + 100
    for client in "bc":
        round_.decline(client, f"offer-{client}", "busy", OPENED + 2)
    assert round_.deadline == OPENED + 100


def test_counter_offer_that_the_deadline_allows_is_agreed_where_longest_is_shorter() -> None:
    round_ = open_round(longest_seconds=0.0)
    assert round_.counter("a", "offer-a", None, 90.0, "", OPENED + 10) == [Confirm(part_of(round_, "a"), 10.0)]
    assert part_of(round_, "a").deadline == 1_100.0


def test_counter_offer_made_again_by_a_client_that_lost_its_memory_is_confirmed() -> None:
    round_ = open_round()
    round_.counter("a", "offer-a", 3, 120.0, "", OPENED)
    assert round_.counter("a", "offer-a", 2, 100.0, "", OPENED + 8) == [Confirm(part_of(round_, "a"), 10.0)]
    part = part_of(round_, "a")
    assert (part.stage, part.plan.epochs, part.deadline, part.lease_until) == (Stage.WORKING, 2, 1_120.0, 1_018.0)


@pytest.mark.parametrize(("client", "offer_id"), [("a", "offer-b"), ("a", ""), ("stranger", "offer-a")])
def test_answer_to_an_offer_that_is_not_the_clients_changes_nothing(client: str, offer_id: str) -> None:
    round_ = open_round()
    assert round_.accept(client, offer_id, OPENED) == [Withdraw(client, offer_id, GONE)]
    assert round_.counter(client, offer_id, 1, None, "", OPENED) == [Withdraw(client, offer_id, GONE)]
    assert round_.decline(client, offer_id, "", OPENED) == round_.fail(client, offer_id, "", OPENED) == []
    assert round_.progress(client, offer_id, Progress(), OPENED) == [Cancel(client, offer_id, "the round is over")]
    assert [part.stage for part in round_.participations] == [Stage.OFFERED] * 3


def test_client_that_leaves_has_failed_and_a_stranger_that_leaves_has_not() -> None:
    round_ = open_round()
    accept(round_, "a")
    assert round_.leave("a", "maintenance", OPENED) == round_.leave("b", "", OPENED) == []
    assert round_.leave("stranger", "", OPENED) == []
    assert ends(round_) == {"a": (Outcome.FAILED, "left: maintenance"), "b": (Outcome.FAILED, "left"), "c": (None, "")}


# Progress and time.


def test_progress_is_kept_and_renews_the_lease() -> None:
    round_ = open_round()
    accept(round_, "a")
    report = Progress(Phase.TRAINING, 2, 5, 0.25, {"loss": 0.7})
    assert round_.progress("a", "offer-a", report, OPENED + 9) == [RenewLease("a", "offer-a", 10.0)]
    assert (part_of(round_, "a").progress, part_of(round_, "a").lease_until) == (report, 1_019.0)


def test_lease_runs_out_at_its_instant_and_not_before() -> None:
    round_ = open_round()
    accept(round_, "a", "b", now=OPENED)
    round_.progress("b", "offer-b", Progress(), OPENED + 5)
    assert round_.tick(OPENED + 9.999) == []
    expired = round_.tick(OPENED + 10)
    assert expired == [Cancel(client, f"offer-{client}", "no sign of life for 10 s") for client in "ac"]
    assert ends(round_)["a"] == (Outcome.EXPIRED, "no sign of life for 10 s")
    assert (round_.counts, round_.next_event()) == (counts(3, 1, expired=2), 1_015.0)
    assert round_.tick(OPENED + 10) == []


def test_time_in_which_the_server_stood_still_is_given_back_with_a_whole_lease() -> None:
    round_ = open_round()
    accept(round_, "a", "b", now=OPENED)
    complete(round_, "c")
    round_.resume(95.0, OPENED + 98)
    assert round_.tick(OPENED + 107.9) == []
    assert {part.deadline for part in round_.participations if part.is_outstanding} == {OPENED + 195}
    round_.tick(OPENED + 108)
    assert ends(round_)["a"] == (Outcome.EXPIRED, "no sign of life for 108 s")


def test_deadline_ends_whoever_has_not_agreed_on_more_time() -> None:
    round_ = open_round(lease_seconds=1_000.0)
    round_.counter("a", "offer-a", None, 120.0, "", OPENED)
    accept(round_, "b")
    assert round_.tick(OPENED + 99.999) == []
    assert [effect.client for effect in round_.tick(OPENED + 100)] == ["b", "c"]
    assert ends(round_)["b"] == (Outcome.EXPIRED, "the deadline passed")
    assert (round_.deadline, round_.next_event()) == (1_120.0, 1_120.0)
    assert round_.tick(OPENED + 120) == [Cancel("a", "offer-a", "the deadline passed")]
    assert (round_.why_closing(), round_.next_event()) == ("every client has answered", math.inf)


# Uploads.


def test_upload_progress_is_shown_and_renews_the_lease() -> None:
    round_ = open_round()
    accept(round_, "a")
    round_.upload_progress("upload-a", 30, 120, OPENED + 7)
    part = part_of(round_, "a")
    assert (part.committed_size, part.body_size_bytes, part.lease_until) == (30, 120, 1_017.0)
    assert part.last_seen == OPENED, "bytes may become durable long after their client fell silent"
    assert (part.progress.phase, part.progress.fraction) == (Phase.UPLOADING, 0.25)
    round_.upload_progress("upload-a", 0, 0, OPENED + 8)
    assert part.progress.fraction == 1.0


def test_chunk_of_an_upload_is_a_sign_of_life() -> None:
    round_ = open_round()
    accept(round_, "a")
    round_.heard_from_upload("upload-a", OPENED + 7)
    round_.heard_from_upload("of another round", OPENED + 8)
    assert (part_of(round_, "a").last_seen, part_of(round_, "a").lease_until) == (OPENED + 7, 1_017.0)


def test_upload_of_another_round_is_unknown() -> None:
    round_ = open_round()
    for act in (round_.of_upload, round_.require_open, round_.begin_finish):
        with pytest.raises(UnknownUpload, match="no upload of that id is expected; wait for the next offer"):
            act("upload-x")


def test_upload_before_the_offer_was_accepted_is_refused() -> None:
    round_ = open_round()
    with pytest.raises(RoundClosed, match="the offer was not accepted") as caught:
        round_.require_open("upload-a")
    assert caught.value.metadata == {"round": "7"}


def test_upload_may_go_on_while_working_and_finishing() -> None:
    round_ = open_round()
    accept(round_, "a")
    assert round_.require_open("upload-a") is part_of(round_, "a")
    round_.begin_finish("upload-a")
    assert round_.require_open("upload-a") is part_of(round_, "a")


# Closing.


def test_round_whose_goal_is_reached_cancels_the_others() -> None:
    round_ = open_round(reporting_goal=2)
    complete(round_, "a", "b")
    reason = round_.why_closing()
    assert reason == "reporting goal of 2 reached"
    cancelled = "round 7 closed: reporting goal of 2 reached"
    assert round_.close(reason, OPENED + 8) == [Cancel("c", "offer-c", cancelled)]
    assert (round_.closed, round_.reason, round_.succeeded) == (1_008.0, reason, True)
    assert ends(round_)["c"] == (Outcome.CANCELLED, cancelled)
    assert round_.counts == counts(3, 0, completed=2, cancelled=1)


def test_round_whose_goal_is_reached_waits_for_the_update_that_is_being_verified() -> None:
    round_ = open_round(reporting_goal=2)
    accept(round_, "c")
    round_.begin_finish("upload-c")
    complete(round_, "a", "b")
    assert round_.why_closing() is None
    round_.complete("upload-c", 1, {}, OPENED)
    assert (round_.why_closing(), len(round_.completed)) == ("reporting goal of 2 reached", 3)


def test_round_that_can_no_longer_reach_enough_updates_closes_without_waiting() -> None:
    round_ = open_round()
    accept(round_, "a")
    round_.decline("b", "offer-b", "", OPENED)
    assert round_.why_closing() is None
    round_.fail("c", "offer-c", "", OPENED)
    assert round_.why_closing() == "2 updates can no longer be reached"
    round_.close("2 updates can no longer be reached", OPENED)
    assert not round_.succeeded


def test_round_in_which_everyone_has_answered_closes_and_succeeds_with_enough() -> None:
    round_ = open_round()
    complete(round_, "a", "b")
    assert round_.why_closing() is None
    round_.decline("c", "offer-c", "", OPENED)
    assert round_.why_closing() == "every client has answered"
    assert round_.close("every client has answered", OPENED) == []
    assert round_.succeeded


def test_round_closed_with_a_quarantined_update_below_the_minimum_does_not_succeed() -> None:
    round_ = open_round("ab")
    complete(round_, "a")
    accept(round_, "b")
    round_.begin_finish("upload-b")
    round_.quarantine("upload-b", "not finite", OPENED)
    assert (round_.why_closing(), round_.succeeded) == ("every client has answered", False)
