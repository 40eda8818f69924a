"""What must be said beside any score on a folder of images: its known weaknesses, and whether it is generated."""

from __future__ import annotations

from pathlib import Path

PHANTOM_MARKER = "PHANTOM.json"
"""A folder with this file (or its parent) holds a generated phantom; see `fedtask.brain_mri.phantom`."""

WEAKNESSES_FILE = "WEAKNESSES.txt"
"""In the folder or its parent: one known weakness of the data per line."""

NO_PATIENTS = (
    "Images have no patient identifiers: slices of one patient may lie on both sides of a split, between train and "
    "val and between sites, which flatters every score."
)
PATIENTS_BY_FOLDER = (
    "Whose an image is, is known by its sub-folder alone: a patient with sub-folders of other names elsewhere, such as "
    "at another site, may lie on both sides of a split, which flatters every score."
)
GENERATED = (
    "The images are a generated phantom, not scans: a score on them says that the machinery works, and nothing about "
    "patients."
)

_MOST_BYTES = 64 * 1024
_MOST_LINES = 50


def is_phantom(folder: Path) -> bool:
    """Whether the folder or its parent carries the phantom's marker."""
    return any((place / PHANTOM_MARKER).is_file() for place in _places(folder))


def weaknesses(folder: Path, *, by_patient: bool) -> tuple[str, ...]:
    """The generic weakness of this kind of data, then the lines of the first `WEAKNESSES.txt` found (up to 50).

    Args:
        folder: where the images are.
        by_patient: whether there are sub-folders that may be those of patients.
    """
    generic = GENERATED if is_phantom(folder) else PATIENTS_BY_FOLDER if by_patient else NO_PATIENTS
    file = next((place / WEAKNESSES_FILE for place in _places(folder) if (place / WEAKNESSES_FILE).is_file()), None)
    if file is None:
        return (generic,)
    with file.open("rb") as stream:
        text = stream.read(_MOST_BYTES).decode("utf-8", "replace")
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    return (generic, *[line for line in lines if line][:_MOST_LINES])


def _places(folder: Path) -> tuple[Path, Path]:
    resolved = folder.resolve()
    return resolved, resolved.parent
