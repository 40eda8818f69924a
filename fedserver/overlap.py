"""Whether a test set is what its score is taken for: examples by which no model was chosen."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fedserver.config import ServerConfig, folder_of
from fedserver.data_files import files_with_sizes


def overlap(config: ServerConfig) -> str:
    """What the holdout and the test set have in common, for people; empty if it is nothing. Reads files of equal size.

    Files are the same if their bytes are: a scan that was converted or resized meanwhile is not found.
    """
    holdout, test = (folder_of(setting) for setting in (config.holdout, config.test))
    if holdout is None or test is None:
        return ""
    shared, total = shared_files(test, holdout)
    verb = "is" if shared == 1 else "are"
    return f"{shared} of the test set's {total} files {verb} in the holdout too, so not unseen" if shared else ""


def shared_files(folder: Path, other: Path) -> tuple[int, int]:
    """How many files of `folder` have the bytes of one of `other`, and how many there are. Hidden ones do not count."""
    ours, theirs = _by_size(folder), _by_size(other)
    shared = 0
    for size in ours.keys() & theirs.keys():
        known = set(_digests(theirs[size]))
        shared += sum(digest in known for digest in _digests(ours[size]))
    return shared, sum(map(len, ours.values()))


def _by_size(folder: Path) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = defaultdict(list)
    for path, size_bytes in files_with_sizes(folder):
        if size_bytes:
            found[size_bytes].append(path)
    return found


def _digests(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb") as file:  # the task says which files cannot be read
            yield hashlib.file_digest(file, "sha256").digest()
