"""Open sessions: the newer one of a client takes over, and words go to whoever is there. A moment."""

from __future__ import annotations

import asyncio
import time

import pytest

from fedserver.coordinator.effects import Effect, TellWaiting
from fedserver.sessions import Session, Sessions

pytestmark = pytest.mark.numpy_task


def word(client: str, reason: str) -> Effect:
    return TellWaiting(client, reason, 0.0)


async def heard(session: Session) -> list[Effect]:
    return [await session.next_to_say() for _ in range(session.num_unsaid)]


async def test_words_go_to_their_client_in_order_and_to_nobody_else() -> None:
    sessions = Sessions()
    alpha, beta = sessions.open("alpha"), sessions.open("beta")
    sessions.say([word("alpha", "1"), word("beta", "2"), word("gone", "3"), word("alpha", "4")])
    assert await heard(alpha) == [word("alpha", "1"), word("alpha", "4")]
    assert await heard(beta) == [word("beta", "2")]
    assert (sessions.clients, "alpha" in sessions, "gone" in sessions) == (["alpha", "beta"], True, False)


async def test_newer_session_of_a_client_takes_over_and_hears_what_is_said_from_then_on() -> None:
    sessions = Sessions()
    older = sessions.open("alpha")
    sessions.say([word("alpha", "1")])
    newer = sessions.open("alpha")
    assert (older.superseded.is_set(), newer.superseded.is_set()) == (True, False)
    sessions.say([word("alpha", "2")])
    assert (await heard(older), await heard(newer)) == ([word("alpha", "1")], [word("alpha", "2")])


async def test_older_session_that_closes_late_does_not_close_the_newer() -> None:
    sessions = Sessions()
    older, newer = sessions.open("alpha"), sessions.open("alpha")
    assert sessions.close(older) is False
    assert "alpha" in sessions
    assert sessions.close(newer) is True
    assert "alpha" not in sessions
    assert sessions.close(newer) is False


async def test_drained_returns_when_the_last_session_ends_by_itself() -> None:
    sessions = Sessions()
    open_ones = [sessions.open("alpha"), sessions.open("beta")]
    waiting = asyncio.create_task(sessions.drained(30.0))
    for session in open_ones:
        await asyncio.sleep(0)
        assert not waiting.done()
        sessions.close(session)
    await asyncio.wait_for(waiting, 5.0)


async def test_drained_with_nobody_there_returns_at_once() -> None:
    sessions = Sessions()
    await asyncio.wait_for(sessions.drained(30.0), 1.0)
    sessions.close(sessions.open("alpha"))
    await asyncio.wait_for(sessions.drained(30.0), 1.0)


async def test_drained_gives_up_when_the_time_is_up() -> None:
    sessions = Sessions()
    sessions.close(sessions.open("beta"))  # an earlier emptiness does not count
    sessions.open("alpha")
    began = time.monotonic()
    await sessions.drained(0.05)
    assert 0.04 < time.monotonic() - began < 5.0


async def test_client_that_does_not_read_is_not_listened_to_until_it_has() -> None:
    sessions = Sessions()
    session = sessions.open("alpha")
    sessions.say(word("alpha", str(number)) for number in range(99))
    await asyncio.wait_for(session.has_room(), 1.0)
    sessions.say([word("alpha", "99")])
    waiting = asyncio.create_task(session.has_room())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert await session.next_to_say() == word("alpha", "0")
    await asyncio.wait_for(waiting, 1.0)


async def test_client_that_has_heard_the_last_word_is_listened_to_and_told_nothing_more() -> None:
    """For up to an hour it says that it still fetches the final models; what would be said to that is not said."""
    sessions = Sessions()
    session = sessions.open("alpha")
    sessions.say(word("alpha", str(number)) for number in range(100))
    session.fall_silent()
    sessions.say([word("alpha", "100")])
    await asyncio.wait_for(session.has_room(), 1.0)
    assert session.num_unsaid == 100
