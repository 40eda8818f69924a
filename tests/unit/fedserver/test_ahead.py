"""Made one ahead: nothing is lost, nothing comes early, and nothing is left running. A moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fedserver.ahead import ahead

pytestmark = pytest.mark.numpy_task


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_ahead_gives_the_same_items_in_order(count: int) -> None:
    assert list(ahead(range(count))) == list(range(count))


def test_ahead_gives_none_and_what_is_false_like_anything_else() -> None:
    assert list(ahead([None, 0, "", None])) == [None, 0, "", None]


def test_ahead_makes_the_next_while_one_is_in_use_and_no_further() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    coming = ahead(items())
    for number in range(3):
        assert next(coming) == number
        assert made[number + 1].wait(10)
        assert [event.is_set() for event in made].count(True) == number + 2
    assert list(coming) == [3]


def test_ahead_raises_what_the_making_raised_behind_what_was_made_before() -> None:
    coming = ahead(1 // number for number in (1, 0))
    assert next(coming) == 1
    with pytest.raises(ZeroDivisionError):
        next(coming)


def test_ahead_closed_waits_for_what_is_being_made() -> None:
    going, ended = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        going.wait(10)
        ended.set()
        yield 1

    coming = ahead(items())
    assert next(coming) == 0
    threading.Timer(0.05, going.set).start()
    coming.close()
    assert ended.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
