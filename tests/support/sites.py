"""Two versions of one task file, as two sites may have them: what a federation's name for a class hides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

OWN_TASK = "site_model:Model"
"""How both versions are called, wherever they are."""


def write_task(folder: Path, **settings: str) -> Path:
    """A folder with a version of the task that is `linear` with `settings` over those the federation gives."""
    folder.mkdir()
    text = "from fedtask.linear import Linear\n\n\nclass Model(Linear):\n    def __init__(self, settings):\n"
    (folder / "site_model.py").write_text(f"{text}        super().__init__({{**settings, **{_literal(settings)}}})\n")
    return folder


def _literal(settings: Mapping[str, str]) -> str:
    return repr(dict(settings))
