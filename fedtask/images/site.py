"""A site's folder, opened: what it trains on, what it validates on, and what may be said about both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedtask.division import divide, limited
from fedtask.images.folders import (
    Examined,
    Listing,
    SkippedFile,
    count_by_reason,
    counted,
    examine,
    list_folder,
    mending_option,
    page_warnings,
    patients,
    shown,
    skipped_warnings,
    sub_folder_names,
    sub_folders,
    told_if_unreadable,
)
from fedtask.images.image_set import DEFAULT_CACHE_BYTES, ImageSet, PixelCache
from fedtask.images.near_duplicates import first_near, near_groups
from fedtask.images.provenance import is_phantom, weaknesses
from fedtask.images.split import Indices, is_near, joined, stratified_split
from fedtask.task import SiteOptions, SiteSummary, TaskError

_TRAIN, _VAL = "train", "val"


@dataclass(frozen=True, slots=True)
class Site:
    """A site's images. `val` may be empty if `train` is too small to be split; `skipped` names every unused file."""

    train: ImageSet
    val: ImageSet
    summary: SiteSummary
    skipped: tuple[SkippedFile, ...]


@told_if_unreadable()
def open_site(
    options: SiteOptions,
    class_names: Sequence[str],
    size: int,
    seed: int = 0,
    *,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> Site:
    """Read `options.folder`: `train/<class>/*`, and `val/<class>/*` if the site has one and is not a shard of it.

    Every file is decoded once, which takes 1 to 2 ms for a slice of 224 x 224. Without `val/`, `VAL_FRACTION` of the
    training images are split off (`seed`): near-duplicates stay together, and so do sub-folders of a class's folder, as
    of patients, where that comes near the fraction. Labels are positions in `class_names`; `size` is the side in pixels
    of the decoded squares; `cache_bytes` bounds the decoded pixels of train and val together.

    Raises:
        TaskError: nothing usable; the message says what was looked for, where, and what was found.
        ValueError: `options.folder` is `None`; generated data is the task's affair.
    """
    folder = _folder_of(options)
    cache = PixelCache(cache_bytes)
    listing = _train_listing(folder, class_names, options)
    val_listing = _val_listing(folder, class_names, options)
    examined = [examine(listing, size, cache)]
    train = examined[0].images
    if not len(train):
        raise TaskError(_no_images(listing, examined[0].skipped, class_names))
    warnings = [*listing.warnings]
    if val_listing is None:
        warnings += _val_warnings(folder, options)
        kept, held_out, parted = _split(train, listing.folder, seed)
        warnings += parted
        train, val = train.subset(kept), train.subset(held_out)
    else:
        examined.append(examine(val_listing, size, cache))
        val = examined[1].images
        warnings += [*val_listing.warnings, *_twin_warnings(train, val), *_both_sides_warnings(listing, val_listing)]
        if not len(val):
            message = _no_images(val_listing, examined[1].skipped, class_names)
            raise TaskError(f"{message}. Or remove that folder: images for validation are then split off from train/")
    warnings += _contradictions(class_names, train, val)
    train = train.subset(limited(train.labels, options.max_examples, options.division_seed))
    warnings += [*_class_warnings("train", train, class_names), *_class_warnings("val", val, class_names)]
    counts = {"train": _counts(train, class_names), "val": _counts(val, class_names)}
    by_patient = patients(listing.folder, examined[0].images.paths) is not None
    summary = _summary(folder, counts, len(train), examined, warnings, by_patient)
    return Site(train, val, summary, tuple(file for part in examined for file in part.skipped))


@told_if_unreadable()
def open_holdout(
    folder: Path, classes: Mapping[str, str], class_names: Sequence[str], size: int
) -> tuple[ImageSet, SiteSummary]:
    """Read a folder laid out as `<class>/*`, all of it, in the order of the class names, then of the file names.

    Raises:
        TaskError: as `open_site`.
    """
    listing = list_folder(folder, class_names, classes)
    examined = examine(listing, size, PixelCache())
    images = examined.images
    if not len(images):
        raise TaskError(_no_images(listing, examined.skipped, class_names))
    warnings = [*listing.warnings, *_contradictions(class_names, images)]
    warnings += _class_warnings("the holdout", images, class_names)
    counts = {"holdout": _counts(images, class_names)}
    by_patient = patients(listing.folder, images.paths) is not None
    return images, _summary(folder, counts, len(images), [examined], warnings, by_patient)


def _folder_of(options: SiteOptions) -> Path:
    if options.folder is None:
        raise ValueError("open_site reads a folder; generated data must be written to one first")
    return options.folder


@told_if_unreadable()
def list_train(folder: Path, class_names: Sequence[str], classes: Mapping[str, str]) -> Listing:
    """List what a site has to train on, by name only: `folder/train/<class>/*`.

    Raises:
        TaskError: there is no such folder, or no class folder in it; the message says what to do with what is there.
    """
    if not folder.is_dir():
        raise TaskError(f"there is no folder {folder}; give the one that holds train/<class>/* as --data")
    if (folder / _TRAIN).is_dir():
        return list_folder(folder / _TRAIN, class_names, classes)
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    files = [counted(len(entries) - len(folders), "file")] if len(folders) < len(entries) else []
    found = " and ".join([*([shown(folders)] if folders else []), *files]) or "nothing"
    looked = f"looked in {folder} for train/, with one folder of images per class ({', '.join(class_names)})"
    raise TaskError(f"{looked}, and found {found}; {_way_to_train(folder, folders, class_names)}")


def _way_to_train(folder: Path, folders: Sequence[str], class_names: Sequence[str]) -> str:
    """What to do where there is no `train/` among the `folders` in it."""
    whole = folder.resolve()
    above = next((parent.parent for parent in (whole, *whole.parents[:1]) if parent.name in (_TRAIN, _VAL)), None)
    if above is not None and (above / _TRAIN).is_dir():
        return f"give the folder {above} as --data"
    misnamed = _misnamed(folder, _TRAIN)
    if misnamed is not None:
        return f"rename {misnamed} to {_TRAIN}"
    deeper = [folder / name for name in folders if (folder / name / _TRAIN).is_dir()]
    if deeper:
        return f"give the folder within it, {shown([str(path) for path in deeper])}, as --data"
    move = f"move the class folders into {folder / _TRAIN} or " if folders else ""
    return (
        f"{move}give another folder as --data. Class folders of other names are mapped with "
        f"{mending_option(class_names)}"
    )


def _misnamed(folder: Path, wanted: str) -> str | None:
    """A folder that seems to be meant, such as `Train` or `training`."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    return next((name for name in names if name.lower().startswith(wanted)), None)


def _train_listing(folder: Path, class_names: Sequence[str], options: SiteOptions) -> Listing:
    listing = list_train(folder, class_names, options.classes)
    if options.num_shards == 1 or not listing.paths:
        return listing
    if not 0 <= options.shard < options.num_shards:
        raise TaskError(f"shard {options.shard} of {options.num_shards}: shards are counted from 0")
    groups, warnings = _kept_whole(listing, class_names, options.num_shards)
    shards = divide(listing.labels, options.num_shards, options.division, options.division_seed, groups)
    return replace(listing.subset(shards[options.shard]), warnings=(*listing.warnings, *warnings))


def _kept_whole(listing: Listing, class_names: Sequence[str], num_shards: int) -> tuple[Indices | None, Sequence[str]]:
    """The sub-folders that no division among clients parts, such as those of patients; and a warning if it does."""
    groups = patients(listing.folder, listing.paths)
    if groups is None:
        return None, ()
    for label in np.unique(listing.labels):
        there = len(np.unique(groups[listing.labels == label]))
        if there < num_shards:  # such as one folder for a batch of scans: one client would get all of the class
            warning = (
                f"images of one sub-folder go to several clients: class {class_names[label]!r} has only "
                f"{counted(there, 'sub-folder')} for {num_shards}. Where each is a patient, that flatters scores"
            )
            return None, [warning]
    return groups, ()


def _val_listing(folder: Path, class_names: Sequence[str], options: SiteOptions) -> Listing | None:
    if options.num_shards > 1 or not (folder / _VAL).is_dir():
        return None
    return list_folder(folder / _VAL, class_names, options.classes)


def _split(images: ImageSet, folder: Path, seed: int) -> tuple[Indices, Indices, list[str]]:
    """What to train on, what to validate on, and whether that parts what may be the slices of one patient."""
    alike, places = near_groups(images.fingerprints), sub_folders(folder, images.paths)
    kept, held_out = stratified_split(images.labels, joined(alike, places), seed)
    if is_near(images.labels, held_out):
        return kept, held_out, []
    kept, held_out = stratified_split(images.labels, alike, seed)
    num_parted = len(np.intersect1d(places[kept], places[held_out]))
    if not num_parted or len(np.unique(places)) == 1:  # what all images are in is nobody's folder
        return kept, held_out, []
    which = "1 sub-folder" if num_parted == 1 else f"{num_parted} sub-folders"
    warning = (
        f"images of {which} are both trained on and validated on: with sub-folders kept whole, far too many or too few "
        "would be validated on. Where each is a patient, this flatters the site's own validation: make a val/ beside "
        "train/, with patients of its own"
    )
    return kept, held_out, [warning]


def _val_warnings(folder: Path, options: SiteOptions) -> list[str]:
    """Whether there is a folder that may have been meant for validation, where images are split off for it."""
    misnamed = _misnamed(folder, _VAL) if options.num_shards == 1 else None
    if misnamed is None:
        return []
    return [f"{folder / misnamed} is not read: to validate on what is in it, rename it to {_VAL}"]


def _no_images(listing: Listing, skipped: Sequence[SkippedFile], class_names: Sequence[str]) -> str:
    message = f"no usable image in {listing.folder} (looked for JPEG, PNG, BMP and TIFF in one folder per class: "
    message += f"{', '.join(class_names)}). "
    if skipped:
        return message + f"Found only files that cannot be used. {'. '.join(skipped_warnings(skipped))}"
    return message + f"Its class folders are empty. If the images are elsewhere, use {mending_option(class_names)}"


def _twin_warnings(train: ImageSet, val: ImageSet) -> list[str]:
    twins = first_near(val.fingerprints, train.fingerprints)
    names = [f"{val.paths[at]} ~ {train.paths[twin]}" for at, twin in enumerate(twins) if twin >= 0]
    if not names:
        return []
    count = f"{len(names)} of {len(val)} images in val/ have a near-duplicate in train/"
    return [f"{count}, which flatters the site's own validation: {shown(names)}"]


def _both_sides_warnings(train: Listing, val: Listing) -> list[str]:
    ours, theirs = (set(sub_folder_names(each.folder, each.paths)) - {None} for each in (train, val))
    shared = sorted(str(name) for name in ours & theirs)
    if not shared:
        return []
    verb = "is" if len(shared) == 1 else "are"
    told = f"{counted(len(shared), 'sub-folder')} of val/ {verb} in train/ by the same name: {shown(shared)}"
    return [f"{told}. Where each is a patient, this flatters the site's own validation: keep a patient on one side"]


def _contradictions(class_names: Sequence[str], *sets: ImageSet) -> list[str]:
    """Whether the very same picture stands under two classes; of a near-duplicate both may be right."""
    first: dict[str, tuple[Path, int]] = {}
    pairs: dict[str, str] = {}
    for images in sets:
        for image_id, path, label in zip(images.ids, images.paths, images.labels.tolist(), strict=True):
            seen_path, seen_label = first.setdefault(image_id, (path, label))
            if label != seen_label:
                pairs.setdefault(
                    image_id, f"{seen_path} is {class_names[seen_label]!r} and {path} is {class_names[label]!r}"
                )
    if not pairs:
        return []
    count = "1 image is" if len(pairs) == 1 else f"{len(pairs)} images are"
    example = next(iter(pairs.values()))
    return [f"{count} in folders of two classes, of which one must be wrong: {example}. Keep only the right one"]


def _class_warnings(where: str, images: ImageSet, class_names: Sequence[str]) -> list[str]:
    lacking = [name for name, count in _counts(images, class_names).items() if not count]
    if not len(images):
        return [f"{where} has no images: too few to split; early stopping and the site's own scores are off"]
    return [f"{where} has no image of class {name!r}; metrics that need one are undefined there" for name in lacking]


def _counts(images: ImageSet, class_names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(images.labels, minlength=len(class_names))
    return dict(zip(class_names, counts.tolist(), strict=True))


def _summary(
    folder: Path,
    counts: Mapping[str, Mapping[str, int]],
    num_examples: int,
    examined: Sequence[Examined],
    warnings: Sequence[str],
    by_patient: bool,
) -> SiteSummary:
    skipped = [file for part in examined for file in part.skipped]
    many_paged = [path for part in examined for path in part.many_paged]
    return SiteSummary(
        num_examples=num_examples,
        counts=counts,
        skipped=count_by_reason(skipped),
        warnings=(*warnings, *page_warnings(many_paged), *skipped_warnings(skipped)),
        weaknesses=weaknesses(folder, by_patient=by_patient),
        synthetic=is_phantom(folder),
    )
