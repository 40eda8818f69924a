"""What a command may say, whatever its output is."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path


def open_output() -> None:
    """Let words end no command: where standard output or error were closed from the start, or cannot write a letter."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
