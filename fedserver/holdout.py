"""Which holdout scores are of: those of two cannot be compared, and a federation may be given another at any start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from fedserver.config import ServerConfig, folder_of
from fedserver.data_files import files_with_sizes


def holdout_id(config: ServerConfig) -> str:
    """What tells a holdout from another; empty if there is none. Lists the folder, so it blocks.

    It goes by names and sizes of files, of generated data by the task's settings. Where the folder lies does not count.
    """
    if config.holdout is None:
        return ""
    folder = folder_of(config.holdout)
    examples = sorted(config.task_settings.items()) if folder is None else sorted(_files(folder))
    text = json.dumps([sorted(config.classes.items()), examples])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _files(place: Path) -> Iterator[tuple[str, int]]:
    for path, size_bytes in files_with_sizes(place):
        yield ("" if path == place else path.relative_to(place).as_posix()), size_bytes
