"""Logs: JSON lines for a service, words for a person, and what is bound to the work on every one. A moment."""

from __future__ import annotations

import errno
import io
import json
import warnings
from collections.abc import Iterator
from datetime import datetime

import pytest
import structlog

from fedstream.logs import configure_logs

pytestmark = pytest.mark.numpy_task


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    before = structlog.get_config()
    with structlog.contextvars.bound_contextvars():
        yield
    structlog.contextvars.clear_contextvars()
    structlog.configure(**before)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def say(stream: io.StringIO, **settings: object) -> list[str]:
    configure_logs(stream=stream, **settings)  # type: ignore[arg-type]
    log = structlog.get_logger()
    with structlog.contextvars.bound_contextvars(round=3, client="alpha"):
        log.debug("unseen")
        log.info("update in", bytes=12)
    log.error("went wrong")
    return stream.getvalue().splitlines()


def test_log_by_default_of_a_stream_that_is_no_terminal_is_json_with_what_is_bound() -> None:
    lines = [json.loads(line) for line in say(io.StringIO())]
    instants = [datetime.fromisoformat(line.pop("timestamp")) for line in lines]
    assert lines == [
        {"event": "update in", "level": "info", "round": 3, "client": "alpha", "bytes": 12},
        {"event": "went wrong", "level": "error"},
    ]
    assert [str(instant.tzinfo) for instant in instants] == ["UTC", "UTC"]


def test_log_by_default_of_a_terminal_is_for_people() -> None:
    lines = say(Terminal())
    assert [("update in" in line, "alpha" in line, line.startswith("{")) for line in lines] == [
        (True, True, False),
        (False, False, False),
    ]


def test_log_for_people_without_a_terminal_has_no_colours() -> None:
    first = say(io.StringIO(), as_json=False)[0]
    assert "\x1b" not in first
    assert first.split(maxsplit=1)[1] == "[info     ] update in bytes=12 client=alpha round=3"


def test_log_asked_for_as_json_is_json_in_a_terminal_too() -> None:
    assert json.loads(say(Terminal(), as_json=True)[0])["event"] == "update in"


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["unseen", "update in", "went wrong"]),
        ("info", ["update in", "went wrong"]),
        ("error", ["went wrong"]),
    ],
)
def test_log_at_a_level_leaves_out_what_is_below_it(level: str, events: list[str]) -> None:
    assert [json.loads(line)["event"] for line in say(io.StringIO(), level=level)] == events


@pytest.mark.parametrize("as_json", [True, False])
def test_log_of_an_exception_tells_its_traceback_and_warns_of_nothing(as_json: bool) -> None:
    stream = io.StringIO()
    configure_logs(as_json=as_json, stream=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            raise ZeroDivisionError("of all things")
        except ZeroDivisionError:
            structlog.get_logger().exception("crashed")
    assert "ZeroDivisionError: of all things" in stream.getvalue()
    assert stream.getvalue().count("Traceback") == 1


def test_log_with_hostile_text_stays_on_its_line() -> None:
    stream = io.StringIO()
    configure_logs(as_json=True, stream=stream)
    structlog.get_logger().info("x", said='a\nb"}{"event":"forged"}\u2028')
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["said"] == 'a\nb"}{"event":"forged"}\u2028'


def test_log_at_a_level_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'loud' is no log level; use one of debug, info, warning, error"):
        configure_logs(level="loud")


class Refusing(io.StringIO):
    """A terminal whose reader has gone, or a file on a full disk."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_line_that_nobody_can_take_is_lost_and_costs_nothing_else() -> None:
    configure_logs(stream=Refusing())
    structlog.get_logger().warning("stopping")
