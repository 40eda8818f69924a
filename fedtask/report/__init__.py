"""The report of a federation: a record of plain facts, and the files that are made of it.

Importing this package loads no plotting library; `render` does.
"""

from __future__ import annotations

from pathlib import Path

from fedtask.report.record import (
    OUTCOMES,
    ClientRecord,
    Contribution,
    DataDescription,
    FederationRecord,
    ModelFile,
    PlanRecord,
    RoundRecord,
    record_from_json,
    record_to_json,
)

__all__ = [
    "OUTCOMES",
    "ClientRecord",
    "Contribution",
    "DataDescription",
    "FederationRecord",
    "ModelFile",
    "PlanRecord",
    "RoundRecord",
    "record_from_json",
    "record_to_json",
    "render",
]


def render(record: FederationRecord, folder: Path, *, pictures: bool = True) -> list[Path]:
    """Write the report into `folder`, made if need be, and return what was written.

    `summary.json`, the self-contained `report.html`, each picture by itself as PNG (those with something to show; none
    without `pictures`), and `tensorboard/` with the scores per round. Existing files are replaced, each in one step.
    """
    from fedtask.report.writer import write_report  # Jinja takes a moment to load, and matplotlib a second

    return write_report(record, folder, pictures=pictures)
