"""Logs for people in a terminal, and JSON lines for a service; both with what is bound to the work at hand."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO, cast

import structlog


class _Lossy:
    """A stream that never refuses: where its disk is full or its reader has gone, a line is lost and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def go_on_without_output() -> None:
    """Let this process go on where nobody reads what it says, or the disk is full for it: the work matters more."""
    sys.stdout, sys.stderr = (cast(TextIO, _Lossy(stream)) for stream in (sys.stdout, sys.stderr))


LEVELS = ("debug", "info", "warning", "error")


def configure_logs(as_json: bool | None = None, level: str = "info", stream: TextIO | None = None) -> None:
    """Set up logging for this process, once, at start.

    Args:
        as_json: one JSON object a line; by default where the stream is no terminal.
        level: `debug`, `info`, `warning` or `error`.
        stream: where to; standard error by default.

    Raises:
        ValueError: `level` is none of these.
    """
    if level.lower() not in LEVELS:
        raise ValueError(f"{level!r} is no log level; use one of {', '.join(LEVELS)}")
    target = stream or sys.stderr
    use_json = not target.isatty() if as_json is None else as_json
    timestamps = structlog.processors.TimeStamper(fmt="iso" if use_json else "%H:%M:%S", utc=use_json)
    renderer: structlog.typing.Processor
    if use_json:
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=target.isatty(), pad_event_to=0)
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        timestamps,
        structlog.processors.format_exc_info,
        renderer,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Lossy(target))),
        cache_logger_on_first_use=True,
    )
