"""Which holdout scores are of: those of two cannot be compared, and a federation may be given another at any start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedserver.config import ServerConfig, folder_of
from fedserver.data_files import files_with_sizes
from fedserver.store.rounds import comparable
from fedtask.report import RoundRecord

_MOST_NAMED = 10


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


def note_of_others(records: Sequence[RoundRecord], holdout: str) -> str:
    """What a reader of the report must know where not all scores are of the holdout that it describes; else empty."""
    scored, compared = [record for record in records if record.evaluation is not None], comparable(records, holdout)
    if not holdout and scored:
        return (
            f"The last start was given no holdout: scores are of rounds up to {scored[-1].number}, on one that is not "
            "described here."
        )
    others = sorted({record.number for record in scored} - {record.number for record in compared})
    if not others:
        return ""
    more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    named = ", ".join(str(number) for number in others[:_MOST_NAMED]) + more
    return (
        f"Scored on another holdout than the one described here: round{'s' if len(others) > 1 else ''} {named}. Such "
        "scores cannot be compared with the others, among which alone the best model was chosen."
    )
