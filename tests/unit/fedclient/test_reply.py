"""The answer to an offer, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedclient.events import Offer
from fedclient.reply import Accept, Counter, Decline, Experience, Reply, SiteLimits, answer
from fedstream.manifest import Digest, ModelRef
from fedstream.plan import Plan

FREE = SiteLimits()
NEW = Experience()


def offer(epochs: int, seconds: float) -> Offer:
    plan = Plan(epochs, 32, 0.1, 0, seed=0)
    return Offer("o", "u", 1, ModelRef(0, Digest(b"0" * 32, 1)), plan, seconds, lease_seconds=60)


@pytest.mark.parametrize(
    ("epochs", "remaining", "limits", "experience", "reply"),
    [
        (10, 100, FREE, NEW, Accept()),
        (10, 100, SiteLimits(10), NEW, Accept()),
        (3, 100, SiteLimits(4), NEW, Accept()),
        (10, 100, SiteLimits(4), NEW, Counter(4, None, "this site allows at most 4 epochs a round")),
        (10, 120, FREE, Experience(10.0), Accept()),
        (10, 119, FREE, Experience(10.0), Counter(0, 120.0, "10 epochs take about 120 s here")),
        (10, 120, FREE, Experience(10.0, 5.0), Counter(0, 125.0, "10 epochs take about 125 s here")),
        (10, 119, FREE, Experience(10.0, 0.0, True), Counter(9, None, "9 epochs fit the time that remains")),
        # After an offer for which one epoch seemed to take too long, one that fits is answered as ever.
        (10, 119, FREE, Experience(10.0, 0.0, True, misfits=1), Counter(9, None, "9 epochs fit the time that remains")),
        (10, 11, FREE, Experience(10.0, 0.0, True), Decline("not even one epoch fits the time that remains", True)),
        (10, 999, SiteLimits(0, 35), Experience(10.0), Counter(3, None, "this site allows 35 s of training a round")),
        (10, 999, SiteLimits(0, 100), Experience(10.0, misfits=1), Accept()),
        (
            10,
            999,
            SiteLimits(0, 10),
            Experience(10.0, misfits=1),
            Counter(1, None, "this site allows 10 s of training a round"),
        ),
        (10, 12, FREE, Experience(10.0, 0.0, True, misfits=1), Counter(1, None, "1 epochs fit the time that remains")),
        (10, 999, SiteLimits(0, 9), Experience(10.0), Decline("one epoch takes longer than this site allows", True)),
        (10, 999, SiteLimits(0, 9), NEW, Accept()),
        (10, 999, SiteLimits(max_rounds=3), Experience(rounds_sent=2), Accept()),
        (
            10,
            999,
            SiteLimits(max_rounds=3),
            Experience(rounds_sent=3),
            Decline("this site takes part in at most 3 rounds"),
        ),
        (
            10,
            50,
            SiteLimits(6, 55),
            Experience(10.0),
            Counter(
                5,
                60.0,
                "this site allows at most 6 epochs a round; this site allows 55 s of training a round; "
                "5 epochs take about 60 s here",
            ),
        ),
    ],
)
def test_answer_changes_only_what_does_not_fit(
    epochs: int, remaining: float, limits: SiteLimits, experience: Experience, reply: Reply
) -> None:
    assert answer(offer(epochs, remaining), limits, experience) == reply


@pytest.mark.parametrize(
    ("limits", "seems"),
    [(FREE, "not to fit the time that remains"), (SiteLimits(0, 9), "to take longer than allowed here")],
    ids=["round's time", "site's limit"],
)
def test_site_that_seems_too_slow_tries_one_epoch_ever_more_seldom(limits: SiteLimits, seems: str) -> None:
    slow = Experience(10.0, 3600.0, more_time_refused=True)
    replies = [answer(offer(10, 100), limits, replace(slow, misfits=number)) for number in range(16)]
    assert [number + 1 for number, reply in enumerate(replies) if isinstance(reply, Counter)] == [2, 4, 8, 16]
    assert {type(reply) for reply in replies} == {Counter, Decline}
    assert all(reply.misfit for reply in replies if isinstance(reply, Counter | Decline))
    assert replies[1] == Counter(1, None, f"one epoch is tried, though it seems {seems}", True)
