"""A plain file, made durable: the least that anything durable costs."""

from __future__ import annotations

import os
from pathlib import Path

BLOCK_BYTES = 1 << 20
"""Written at a time, as chunks of models are."""


def write_and_sync(path: Path, data: memoryview) -> None:
    """Write `data` to `path` in blocks, and return when it is on the medium."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for start in range(0, len(data), BLOCK_BYTES):
            os.pwrite(descriptor, data[start : start + BLOCK_BYTES], start)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
