"""Which files of a folder laid out as `<class>/*` are examples, and which are left out, and why.

Two steps: `list_folder` looks at names only, so that a folder of any size can be divided before anything is decoded;
`examine` then decodes every file once and tells the usable ones from the others. What is in sub-folders of a class
folder, such as one per patient, is of that class. Links to folders in it are not followed: they may lead to another
class, or round in a circle. Hidden files (`.DS_Store`, `._slice.jpg`), `Thumbs.db` and `desktop.ini` are what file
managers leave behind: they are passed over without a word. Every other file that is not used is counted by reason and
named.
"""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedtask.class_folders import split_folders
from fedtask.images.decode import SkipReason, UnusableImage, decode_file
from fedtask.images.image_set import ImageSet, PixelCache, num_decoding_threads, pixel_id
from fedtask.images.near_duplicates import NUM_WORDS, Fingerprints, fingerprint
from fedtask.task import TaskError

NAMES_SHOWN = 10
"""How many files a message names before it counts the rest."""

_DICOM_TOOL = "for example with dcmj2pnm --write-png of DCMTK (dcm2img in its newer versions)"
_ADVICE = {SkipReason.DICOM: f"DICOM is not read: export the slices to PNG first, {_DICOM_TOOL}"}
_DIRECT_PARTS = 2
"""Of the path of a file that stands in its class's folder itself: the class's folder, and its name."""
_FILE_MANAGER_LITTER = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a folder's known classes, by name only: in class order, then by name, the same on every machine."""

    folder: Path
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    warnings: tuple[str, ...]

    def subset(self, indices: npt.NDArray[np.int64]) -> Listing:
        """The files at `indices`; the warnings stay."""
        return Listing(self.folder, tuple(self.paths[i] for i in indices), self.labels[indices], self.warnings)


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that is not used, and why."""

    path: Path
    reason: SkipReason
    detail: str


@dataclass(frozen=True, slots=True)
class Examined:
    """What became of the files of a listing. `many_paged` are those of `images` whose first page alone is used."""

    images: ImageSet
    skipped: tuple[SkippedFile, ...]
    many_paged: tuple[Path, ...]


@contextlib.contextmanager
def told_if_unreadable() -> Iterator[None]:
    """Make a `TaskError` of what the system refuses to show: whoever runs this can do something about it."""
    try:
        yield
    except OSError as error:
        raise TaskError(
            f"{error.filename or 'a folder'} cannot be read ({error.strerror or error}); give the user that runs "
            "this the right to read it and to enter its folders"
        ) from error


@told_if_unreadable()
def list_folder(folder: Path, class_names: Sequence[str], classes: Mapping[str, str]) -> Listing:
    """List the files of each class in `folder`.

    `classes` maps a class name of the task to the folder that holds it here, or to several joined by `+`; a class that
    it does not name is in the folder of its own name.

    Raises:
        TaskError: the folder or all class folders are missing, or `classes` makes no sense.
    """
    _check_classes(class_names, classes)
    found = _sub_folders(folder, class_names)
    wanted = {name: _as_written_there(_folders_of(name, classes), found) for name in class_names}
    known = {name: [local for local in locals_ if local in found] for name, locals_ in wanted.items()}
    if not any(known.values()):
        raise TaskError(_nothing_known(folder, wanted, found, class_names))
    paths: list[Path] = []
    labels: list[int] = []
    warnings = _listing_warnings(folder, wanted, found)
    for label, name in enumerate(class_names):
        for local in known[name]:
            tree = files_below(folder / local)
            paths += tree.files
            labels += [label] * len(tree.files)
            warnings += _tree_warnings(folder / local, name, tree)
    return Listing(folder, tuple(paths), np.array(labels, np.int64), tuple(warnings))


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder with all that is in it: files by path, and how many of them are in how many sub-folders.

    `links` are links to folders, which are not followed.
    """

    files: tuple[Path, ...]
    num_nested: int
    num_sub_folders: int
    links: tuple[Path, ...]


def files_below(folder: Path) -> Tree:
    """Every file in a folder and in its sub-folders, in the order of their paths, but for what file managers leave.

    Raises:
        OSError: it, or a folder in it, cannot be read.
    """
    files: list[Path] = []
    links: list[Path] = []
    num_nested = num_sub_folders = 0
    for place, folders, names in os.walk(folder, onerror=_raise):  # does not follow links by itself
        folders[:] = [name for name in folders if not _is_litter(name)]
        here = Path(place)
        kept = [here / name for name in names if not _is_litter(name)]
        links += [here / name for name in folders if (here / name).is_symlink()]
        files += kept
        if kept and here != folder:
            num_nested += len(kept)
            num_sub_folders += 1
    return Tree(tuple(sorted(files)), num_nested, num_sub_folders, tuple(sorted(links)))


def sub_folders(folder: Path, paths: Sequence[Path]) -> npt.NDArray[np.int64]:
    """Which images stand in a sub-folder of one name, such as a patient's, whatever the class: `int64 [n]`, one number
    for each name, and one for each image that stands in none.

    Args:
        folder: laid out as `<class>/*`.
        paths: of files in it, at any depth.
    """
    numbers: dict[str | int, int] = {}
    names = [index if name is None else name for index, name in enumerate(sub_folder_names(folder, paths))]
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def sub_folder_names(folder: Path, paths: Sequence[Path]) -> list[str | None]:
    """Of each image the sub-folder of its class's folder that it stands in, at any depth; `None` if it is in none."""
    places = [path.relative_to(folder).parts for path in paths]
    return [parts[1] if len(parts) > _DIRECT_PARTS else None for parts in places]


def patients(folder: Path, paths: Sequence[Path]) -> npt.NDArray[np.int64] | None:
    """`sub_folders`, where these may be those of patients; `None` where there is none, or one that has all images."""
    groups = sub_folders(folder, paths)
    return groups if 1 < len(np.unique(groups)) < len(groups) else None


def _raise(error: OSError) -> None:
    raise error


def examine(listing: Listing, size: int, cache: PixelCache) -> Examined:
    """Decode every listed file once; what is usable becomes an `ImageSet` in the listing's order."""
    usable: list[int] = []
    found: list[_Found] = []
    skipped: list[SkippedFile] = []

    def examine_one(path: Path) -> _Found | SkippedFile:
        try:
            decoded = decode_file(path, size)
        except UnusableImage as error:
            return SkippedFile(path, error.reason, error.detail)
        image_id = pixel_id(decoded.pixels)
        cache.offer(image_id, decoded.pixels)
        return _Found(path, image_id, fingerprint(decoded.pixels), decoded.has_more_pages)

    with ThreadPoolExecutor(num_decoding_threads()) as pool:
        for index, outcome in enumerate(pool.map(examine_one, listing.paths)):
            if isinstance(outcome, SkippedFile):
                skipped.append(outcome)
            else:
                usable.append(index)
                found.append(outcome)
    prints = np.array([file.fingerprint for file in found], np.uint64).reshape(-1, NUM_WORDS)
    paths, ids = [file.path for file in found], [file.image_id for file in found]
    images = ImageSet(paths, listing.labels[usable], ids, prints, size, cache)
    return Examined(images, tuple(skipped), tuple(file.path for file in found if file.has_more_pages))


@dataclass(frozen=True, slots=True)
class _Found:
    """A usable file."""

    path: Path
    image_id: str
    fingerprint: Fingerprints
    has_more_pages: bool


def count_by_reason(skipped: Sequence[SkippedFile]) -> dict[str, int]:
    """Number of skipped files per reason, in the order of `SkipReason`."""
    counts = Counter(file.reason for file in skipped)
    return {reason.value: counts[reason] for reason in SkipReason if counts[reason]}


def skipped_warnings(skipped: Sequence[SkippedFile]) -> list[str]:
    """One sentence per reason, naming the first files."""
    sentences = []
    for reason in SkipReason:
        files = [file for file in skipped if file.reason is reason]
        if files:
            named = shown([f"{file.path} ({file.detail})" for file in files])
            advice = f". {_ADVICE[reason]}" if reason in _ADVICE else ""
            sentences.append(f"{counted(len(files), 'file')} skipped, {reason.value}: {named}{advice}")
    return sentences


def page_warnings(files: Sequence[Path]) -> list[str]:
    """Of TIFF files with several pages, how many there are, the first of them, and what to do."""
    if not files:
        return []
    count = "1 TIFF file has" if len(files) == 1 else f"{len(files)} TIFF files have"
    told = f"{count} several pages, of which only the first is used: {shown([str(path) for path in files])}"
    return [f"{told}. If the others are slices to learn from, save each page as a file of its own"]


def shown(names: Sequence[str]) -> str:
    """The first names, and the count of the rest."""
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def mending_option(class_names: Sequence[str]) -> str:
    """`--classes no=FOLDER,yes=FOLDER`."""
    return "--classes " + ",".join(f"{name}=FOLDER" for name in class_names)


def counted(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _check_classes(class_names: Sequence[str], classes: Mapping[str, str]) -> None:
    unknown = sorted(set(classes) - set(class_names))
    if unknown:
        raise TaskError(
            f"--classes names {', '.join(map(repr, unknown))}, but the task's classes are {', '.join(class_names)}: "
            f"write {mending_option(class_names)}"
        )
    used = Counter(_composed(local) for name in class_names for local in _folders_of(name, classes))
    for local, times in used.items():
        if times > 1:
            raise TaskError(f"the folder {local!r} would hold {times} classes; give each its own in --classes")
        if not local or Path(local).name != local:
            raise TaskError(
                f"{local!r} in --classes is not the plain name of a folder beside those of the other classes; folders "
                "within one are read with it"
            )


def _folders_of(name: str, classes: Mapping[str, str]) -> list[str]:
    return split_folders(classes[name]) if name in classes else [name]


def _as_written_there(names: Sequence[str], found: Sequence[str]) -> list[str]:
    """Names as the disk has them, if it has them: on a Mac an accent is a character of its own, typed it is none."""
    there = {_composed(name): name for name in found}
    return [name if name in found else there.get(_composed(name), name) for name in names]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _sub_folders(folder: Path, class_names: Sequence[str]) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        raise TaskError(
            f"there is no folder {folder}; looked there for {_as_folders(class_names)}, one folder of images per class"
        ) from None


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _FILE_MANAGER_LITTER


def _listing_warnings(folder: Path, wanted: Mapping[str, list[str]], found: Sequence[str]) -> list[str]:
    known = {local for locals_ in wanted.values() for local in locals_}
    missing = sorted(known - set(found))
    unknown = sorted(set(found) - known)
    warnings = []
    if missing:
        option = mending_option(list(wanted))
        warnings.append(f"{folder} has no {_as_folders(missing)}; if it has another name here, write {option}")
    if unknown:
        warnings.append(
            f"{folder} also holds {_as_folders(unknown)}, which no class of the task is mapped to and which is not "
            f"read; map it with {mending_option(list(wanted))} (several folders of one class are joined by +)"
            f"{_writing_marks(unknown)}"
        )
    return warnings


def _tree_warnings(folder: Path, class_name: str, tree: Tree) -> list[str]:
    """What a person may not have meant: a folder in a class folder may have been put aside there."""
    warnings = []
    if tree.num_nested:
        files = counted(tree.num_nested, "file")
        places = counted(tree.num_sub_folders, "sub-folder")
        warnings.append(f"{folder} holds {files} in {places}, read as {class_name!r} like the others")
    if tree.links:
        named = shown([str(path) for path in tree.links])
        warnings.append(f"{folder} holds links to folders, which are not followed: {named}")
    return warnings


def _nothing_known(
    folder: Path, wanted: Mapping[str, list[str]], found: Sequence[str], class_names: Sequence[str]
) -> str:
    looked_for = _as_folders([local for locals_ in wanted.values() for local in locals_])
    holds = f"the folders {_as_folders(found)}" if found else "no folders"
    message = f"looked in {folder} for {looked_for}, one folder of images per class, and found {holds}. "
    return message + _way_to_classes(folder, wanted, found, class_names)


def _way_to_classes(
    folder: Path, wanted: Mapping[str, list[str]], found: Sequence[str], class_names: Sequence[str]
) -> str:
    """What to do where no class has a folder."""
    locals_ = {local for locals_ in wanted.values() for local in locals_}
    if folder.resolve().name in locals_:
        return f"It is the folder of one class: give the folder above it, {folder.resolve().parent}"
    is_part = {name: any((folder / name / local).is_dir() for local in locals_) for name in found}
    deeper = [folder / name for name in found if is_part[name] or name in ("train", "val")]
    if deeper:
        return f"They stand one level deeper, in {shown([str(path) for path in deeper])}"
    alike = {name: other for name in class_names for other in found if other.casefold() == name.casefold()}
    if len(alike) == len(class_names):
        return "Small and capital letters differ: write --classes " + ",".join(f"{n}={o}" for n, o in alike.items())
    option = f"{mending_option(class_names)}{_writing_marks(found)}"
    return f"If the classes have other names here, say which is which: {option}"


def _writing_marks(names: Sequence[str]) -> str:
    """How names with the marks of `--classes` in them are written there."""
    marks = [mark for mark in ",+" if any(mark in name for name in names)]
    return "".join(f". Write a {mark} of a folder's name as \\{mark}, in quotes" for mark in marks)


def _as_folders(names: Sequence[str]) -> str:
    return shown([f"{name}/" for name in names])
