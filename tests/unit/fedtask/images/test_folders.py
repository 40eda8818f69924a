"""fedtask.images.folders: what is found, what is passed over, and what is said about it. Takes about a second."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from fedclient.config import parse_classes
from fedserver.cli_words import class_folders
from fedtask.images.decode import SkipReason
from fedtask.images.folders import count_by_reason, examine, list_folder, patients, skipped_warnings
from fedtask.images.image_set import PixelCache
from fedtask.task import TaskError

CLASSES = ("no", "yes")
OTHERS = r"yes=T1C\++T1\, T2=3"
Pictures = Callable[[Path, int, int], list[Path]]


def test_list_mapped_classes_reads_the_local_folders(tmp_path: Path, write_pictures: Pictures) -> None:
    healthy = write_pictures(tmp_path / "healthy", 1, 0)
    glioma = write_pictures(tmp_path / "glioma", 2, 10)
    pituitary = write_pictures(tmp_path / "pituitary", 1, 20)
    listing = list_folder(tmp_path, CLASSES, {"no": "healthy", "yes": "glioma+pituitary"})
    assert listing.paths == (*healthy, *glioma, *pituitary)
    assert listing.labels.tolist() == [0, 1, 1, 1]
    assert listing.warnings == ()


def test_list_folders_with_commas_and_pluses_in_their_names_can_be_mapped_as_the_warning_says(
    tmp_path: Path, write_pictures: Pictures
) -> None:
    healthy = write_pictures(tmp_path / "none, so far", 1, 0)
    glioma = write_pictures(tmp_path / "T1C+", 1, 10)
    both = write_pictures(tmp_path / "T1, T2=3", 1, 20)
    with pytest.raises(TaskError, match=r"Write a , of a folder's name as \\,, in quotes\. Write a \+ of .* as \\\+"):
        list_folder(tmp_path, CLASSES, {})
    for classes in (parse_classes(rf"no=none\, so far,{OTHERS}"), class_folders([r"no=none\, so far", OTHERS])):
        assert isinstance(classes, dict)
        listing = list_folder(tmp_path, CLASSES, classes)
        assert listing.paths == (*healthy, *glioma, *both)
        assert (listing.labels.tolist(), listing.warnings) == ([0, 1, 1], ())


@pytest.mark.parametrize(("there", "typed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_list_finds_folders_with_accents_however_these_are_written(
    tmp_path: Path, write_pictures: Pictures, there: Literal["NFC", "NFD"], typed: Literal["NFC", "NFD"]
) -> None:
    healthy = write_pictures(tmp_path / unicodedata.normalize(there, "bénin"), 1, 0)
    tumour = write_pictures(tmp_path / unicodedata.normalize(there, "mélanome"), 1, 10)
    names = [unicodedata.normalize(typed, name) for name in ("bénin", "mélanome")]
    for listing in (
        list_folder(tmp_path, names, {}),
        list_folder(tmp_path, CLASSES, dict(zip(CLASSES, names, strict=True))),
    ):
        assert (listing.paths, listing.labels.tolist(), listing.warnings) == ((*healthy, *tumour), [0, 1], ())


def test_list_one_folder_for_two_classes_is_refused_however_it_is_written(tmp_path: Path) -> None:
    classes = {"no": unicodedata.normalize("NFD", "bénin"), "yes": unicodedata.normalize("NFC", "bénin")}
    with pytest.raises(TaskError, match="the folder 'bénin' would hold 2 classes"):
        list_folder(tmp_path, CLASSES, classes)


def test_list_passes_over_hidden_files_and_those_in_hidden_folders(tmp_path: Path, write_pictures: Pictures) -> None:
    paths = write_pictures(tmp_path / "no", 1, 0)
    write_pictures(tmp_path / "no" / ".thumbnails", 2, 10)
    for name in (".DS_Store", "._0000.png", "Thumbs.db", "desktop.ini"):
        (tmp_path / "no" / name).write_bytes(b"litter")
    (tmp_path / "yes").mkdir()
    listing = list_folder(tmp_path, CLASSES, {})
    assert listing.paths == tuple(paths)
    assert listing.warnings == ()


def test_list_reads_sub_folders_of_any_depth_as_their_class_and_says_so(
    tmp_path: Path, write_pictures: Pictures
) -> None:
    deep = write_pictures(tmp_path / "no" / "patient7" / "series1", 2, 0)
    flat = write_pictures(tmp_path / "no", 1, 10)
    patients = [path for number in (1, 2) for path in write_pictures(tmp_path / "yes" / f"patient{number}", 1, number)]
    listing = list_folder(tmp_path, CLASSES, {})
    assert listing.paths == (*flat, *deep, *patients)
    assert listing.labels.tolist() == [0, 0, 0, 1, 1]
    assert listing.warnings == (
        f"{tmp_path / 'no'} holds 2 files in 1 sub-folder, read as 'no' like the others",
        f"{tmp_path / 'yes'} holds 2 files in 2 sub-folders, read as 'yes' like the others",
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["no/p1/a.png", "no/p1/b.png", "yes/p2/t1/c.png", "yes/p1/d.png"], [0, 0, 1, 0]),
        (["no/p1/a.png", "no/p1/b.png", "yes/c.png", "yes/d.png"], [0, 0, 1, 2]),
        (["no/p1/a.png", "yes/p2/b.png"], None),
        (["no/images/a.png", "yes/images/b.png"], None),
        (["no/a.png", "yes/b.png"], None),
    ],
    ids=["two patients", "one patient and single images", "one image each", "one sub-folder for all", "none"],
)
def test_patients_are_the_sub_folders_where_these_tell_images_apart(
    names: list[str], expected: list[int] | None
) -> None:
    got = patients(Path("/data"), [Path("/data", name) for name in names])
    assert expected == (None if got is None else got.tolist())


def test_list_follows_a_link_to_a_class_folder_and_to_a_file_but_not_to_a_folder_within(
    tmp_path: Path, write_pictures: Pictures
) -> None:
    elsewhere = write_pictures(tmp_path / "archive", 1, 0)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "no").symlink_to(tmp_path / "archive")
    yes = write_pictures(tmp_path / "train" / "yes", 1, 10)
    (tmp_path / "train" / "yes" / "a.png").symlink_to(elsewhere[0])
    (tmp_path / "train" / "yes" / "circle").symlink_to(tmp_path / "train")
    listing = list_folder(tmp_path / "train", CLASSES, {})
    assert listing.paths == (tmp_path / "train/no/0000.png", *yes, tmp_path / "train/yes/a.png")
    assert listing.warnings == (
        f"{tmp_path / 'train/yes'} holds links to folders, which are not followed: {tmp_path / 'train/yes/circle'}",
    )


def test_list_missing_and_unknown_folders_are_warnings(tmp_path: Path, write_pictures: Pictures) -> None:
    write_pictures(tmp_path / "no", 1, 0)
    write_pictures(tmp_path / "tumour", 1, 10)
    missing, unknown = list_folder(tmp_path, CLASSES, {}).warnings
    assert missing == f"{tmp_path} has no yes/; if it has another name here, write --classes no=FOLDER,yes=FOLDER"
    assert unknown == (
        f"{tmp_path} also holds tumour/, which no class of the task is mapped to and which is not read; map it with "
        "--classes no=FOLDER,yes=FOLDER (several folders of one class are joined by +)"
    )


def test_list_only_unknown_folders_says_what_was_looked_for_where_and_what_was_found(tmp_path: Path) -> None:
    for name in ("healthy", "tumour", ".git"):
        (tmp_path / name).mkdir()
    with pytest.raises(TaskError) as caught:
        list_folder(tmp_path, CLASSES, {})
    assert str(caught.value) == (
        f"looked in {tmp_path} for no/, yes/, one folder of images per class, and found the folders healthy/, tumour/. "
        "If the classes have other names here, say which is which: --classes no=FOLDER,yes=FOLDER"
    )


@pytest.mark.parametrize(
    ("given", "folders", "way"),
    [
        (".", ("No", "YES", "notes"), "Small and capital letters differ: write --classes no=No,yes=YES"),
        (".", ("No", "tumour"), "If the classes have other names here, say which is which: --classes no=FOLDER,"),
        (".", ("train/no", "val/no", "val/yes"), "They stand one level deeper, in {folder}/train, {folder}/val"),
        (".", ("train/healthy",), "They stand one level deeper, in {folder}/train"),
        ("val/no", ("val/no",), "It is the folder of one class: give the folder above it, {folder}/val"),
    ],
)
def test_list_folder_without_classes_says_where_they_are(
    tmp_path: Path, given: str, folders: tuple[str, ...], way: str
) -> None:
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(TaskError) as caught:
        list_folder(tmp_path / given, CLASSES, {})
    assert f". {way.format(folder=tmp_path)}" in str(caught.value)


def test_list_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"there is no folder .*/gone; looked there for no/, yes/"):
        list_folder(tmp_path / "gone", CLASSES, {})


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"tumor": "yes"}, r"--classes names 'tumor', but the task's classes are no, yes: write --classes no=FOLDER"),
        ({"no": "yes"}, r"the folder 'yes' would hold 2 classes"),
        ({"no": "../elsewhere"}, r"'\.\./elsewhere' in --classes is not the plain name of a folder"),
        ({"no": "no+no/patient7"}, r"'no/patient7' in --classes is not .*; folders within one are read with it"),
        ({"no": ""}, r"'' in --classes is not the plain name of a folder"),
        ({"yes": "glioma+"}, r"'' in --classes is not the plain name of a folder"),
    ],
)
def test_list_senseless_mapping_is_refused(tmp_path: Path, classes: dict[str, str], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        list_folder(tmp_path, CLASSES, classes)


def test_examine_counts_names_and_skips_what_is_unusable(tmp_path: Path, write_pictures: Pictures) -> None:
    good = write_pictures(tmp_path / "no", 2, 0)
    (tmp_path / "no" / "0000a.jpg").write_bytes(b"")
    (tmp_path / "no" / "0000b.jpg").write_bytes(good[0].read_bytes())
    (tmp_path / "no" / "0000c.png").write_bytes(good[0].read_bytes()[:200])
    (tmp_path / "no" / "notes.txt").write_text("patient was moving")
    (tmp_path / "no" / "list.csv").write_text("a,b")
    examined = examine(list_folder(tmp_path, CLASSES, {}), 16, PixelCache())
    skipped = examined.skipped
    assert examined.images.paths == tuple(good)
    assert [(file.path.name, file.reason) for file in skipped] == [
        ("0000a.jpg", SkipReason.EMPTY),
        ("0000b.jpg", SkipReason.MISLABELLED),
        ("0000c.png", SkipReason.CORRUPT),
        ("list.csv", SkipReason.NOT_AN_IMAGE),
        ("notes.txt", SkipReason.NOT_AN_IMAGE),
    ]
    assert count_by_reason(skipped) == {"empty": 1, "not an image": 2, "mislabelled extension": 1, "corrupt": 1}
    sentences = skipped_warnings(skipped)
    assert sentences[0] == f"1 file skipped, empty: {tmp_path / 'no' / '0000a.jpg'} (0 bytes)"
    assert sentences[2].endswith("0000b.jpg (its content is PNG)")


def test_skipped_warning_of_many_files_names_ten_and_counts_the_rest(tmp_path: Path) -> None:
    (tmp_path / "no").mkdir()
    for number in range(13):
        (tmp_path / "no" / f"{number:02}.jpg").write_bytes(b"")
    (sentence,) = skipped_warnings(examine(list_folder(tmp_path, CLASSES, {}), 16, PixelCache()).skipped)
    assert sentence.startswith("13 files skipped, empty: ")
    assert sentence.endswith("09.jpg (0 bytes) and 3 more")
