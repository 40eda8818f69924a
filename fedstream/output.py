"""What a command may say, whatever its output is."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def told_if_refused(command: str) -> Iterator[None]:
    """End with a sentence, and status 1, where standard output takes no more, as on a full disk."""
    try:
        yield
    except OSError:
        if (refusal := _refusal()) is None:
            raise
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for what is left to be flushed
        sys.stderr.write(f"{command}: what it had to say could not be written: {refusal}\n")
        raise SystemExit(1) from None


def _refusal() -> str | None:
    """Why standard output is refused; `None` if it is not, or if nobody reads it, which is no trouble."""
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")  # what was refused before may have been dropped
    except BrokenPipeError:
        return None
    except OSError as error:
        return error.strerror or str(error)
    return None


def open_output() -> None:
    """Let words end no command: where standard output or error were closed from the start, or cannot write a letter."""
    _fill_standard_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fill_standard_descriptors() -> None:
    """Where one of them is closed, the next file or socket would take its number, and get what others write to it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            os.set_inheritable(opened, True)
