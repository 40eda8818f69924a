"""How the process of a command takes the signals of whoever runs it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import structlog

from fedstream.signals import end_at_once_from_now_on, is_heeded

log = structlog.get_logger()


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at the first SIGINT or SIGTERM, from now on; a second one ends the process at once.

    A hang-up is ignored: that a terminal is closed, or its connection is lost, is to end no federation.
    """
    loop = asyncio.get_running_loop()
    if is_heeded(signal.SIGHUP):
        hint = "`fedserver stop` or SIGTERM ends the federation"
        loop.add_signal_handler(signal.SIGHUP, partial(log.warning, "a hang-up (SIGHUP) is ignored", hint=hint))
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, number, stop)


def leave_in_order_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise `SystemExit` from now on, so that what this process has started ends with it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if is_heeded(number):
            signal.signal(number, _leave)


def _leave(number: int, _: object) -> NoReturn:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of a closed terminal comes a second one, while this ends the others
    raise SystemExit(128 + number)


def _on_signal(number: signal.Signals, stop: Callable[[], None]) -> None:
    stop()
    end_at_once_from_now_on()
    log.warning("stopping", signal=number.name, hint="once more to end at once")
