"""fedtask.images.site: whole folders, opened. Takes about 5 seconds, most of it the real slices."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from fedtask.images.near_duplicates import near_pairs
from fedtask.images.provenance import GENERATED, NO_PATIENTS, PATIENTS_BY_FOLDER
from fedtask.images.site import Site, open_holdout, open_site
from fedtask.task import SiteOptions, SiteSummary, TaskError
from tests.unit.fedtask.images.conftest import picture

CLASSES = ("no", "yes")
MakeSite = Callable[[Mapping[str, int]], Path]


def open_small(folder: Path, seed: int = 0, **options: object) -> Site:
    return open_site(SiteOptions(folder, **options), CLASSES, 16, seed)  # type: ignore[arg-type]


def test_site_with_val_uses_it(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 4, "train/yes": 6, "val/no": 2, "val/yes": 1})
    site = open_small(folder)
    assert site.summary == SiteSummary(
        num_examples=10,
        counts={"train": {"no": 4, "yes": 6}, "val": {"no": 2, "yes": 1}},
        skipped={},
        warnings=(),
        weaknesses=(NO_PATIENTS,),
        synthetic=False,
    )
    assert site.train.labels.tolist() == [0] * 4 + [1] * 6
    assert {path.parts[-3] for path in site.val.paths} == {"val"}
    assert site.train.load([0, 9]).shape == (2, 16, 16, 3)


def test_site_with_a_limit_trains_on_the_same_share_of_each_class_every_time(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 4, "train/yes": 8, "val/no": 2, "val/yes": 1})
    site = open_small(folder, max_examples=6)
    assert (site.summary.num_examples, site.summary.counts["train"]) == (6, {"no": 2, "yes": 4})
    assert site.summary.counts["val"] == {"no": 2, "yes": 1}
    assert site.train.paths == open_small(folder, max_examples=6).train.paths
    assert open_small(folder, max_examples=100).summary.num_examples == 12


def test_site_without_val_splits_one_off_and_keeps_copies_together(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 20, "train/yes": 40})
    for path in sorted((folder / "train" / "no").iterdir()):
        picture(int(path.stem)).resize((64, 64)).convert("L").save(path.with_name(f"copy_{path.stem}.bmp"))
    site = open_small(folder)
    assert site.summary.counts == {"train": {"no": 34, "yes": 34}, "val": {"no": 6, "yes": 6}}
    assert near_pairs(site.train.fingerprints, site.val.fingerprints).tolist() == []
    assert open_small(folder).val.ids == site.val.ids
    assert open_small(folder, seed=1).val.ids != site.val.ids


def patients(folder: Path, site: Site) -> tuple[set[str], set[str]]:
    """Whose images are trained on, and whose validated on."""
    train, val = ({path.relative_to(folder).parts[2] for path in part.paths} for part in (site.train, site.val))
    return train, val


def test_site_without_val_validates_on_patients_of_its_own(make_site: MakeSite) -> None:
    folder = make_site({f"train/{name}/p{number}/t1": 3 for number in range(20) for name in ("no", "yes")})
    site = open_small(folder)
    train, val = patients(folder, site)
    assert (len(train), len(val)) == (17, 3)
    assert not train & val
    assert site.summary.counts == {"train": {"no": 51, "yes": 51}, "val": {"no": 9, "yes": 9}}
    assert not any("validated on" in warning for warning in site.summary.warnings)


def test_site_whose_images_are_all_in_one_sub_folder_parts_it_without_a_word(make_site: MakeSite) -> None:
    site = open_small(make_site({"train/no/images": 20, "train/yes/images": 20}))
    assert site.summary.counts["val"] == {"no": 3, "yes": 3}
    assert not any("validated on" in warning for warning in site.summary.warnings)


def test_site_with_few_sub_folders_parts_them_and_says_so(make_site: MakeSite) -> None:
    folder = make_site({f"train/{name}/batch{number}": 20 for number in range(2) for name in ("no", "yes")})
    site = open_small(folder)
    assert site.summary.counts["val"] == {"no": 6, "yes": 6}
    [warning] = [warning for warning in site.summary.warnings if "validated on" in warning]
    assert warning.startswith("images of 2 sub-folders are both trained on and validated on")
    assert "make a val/" in warning


def test_site_near_duplicates_between_train_and_val_are_reported_by_name(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 3, "train/yes": 3, "val/no": 2, "val/yes": 2})
    shutil.copy(folder / "train/no/0001.png", folder / "val/no/twin.png")
    (warning,) = open_small(folder).summary.warnings
    assert warning == (
        "1 of 5 images in val/ have a near-duplicate in train/, which flatters the site's own validation: "
        f"{folder / 'val/no/twin.png'} ~ {folder / 'train/no/0001.png'}"
    )


def test_site_with_one_image_under_two_classes_says_how_many_and_names_a_pair(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 4, "train/yes": 4})
    shutil.copy(folder / "train/no/0001.png", folder / "train/yes/copy.png")
    (one,) = open_small(folder).summary.warnings
    picture(2).save(folder / "train/yes/other.bmp")
    picture(2).save(folder / "train/yes/again.bmp")
    (two,) = open_small(folder).summary.warnings

    assert one == (
        f"1 image is in folders of two classes, of which one must be wrong: {folder / 'train/no/0001.png'} is 'no' and "
        f"{folder / 'train/yes/copy.png'} is 'yes'. Keep only the right one"
    )
    assert two.startswith("2 images are in folders of two classes, of which one must be wrong: ")


def test_site_with_one_image_under_two_classes_in_train_and_val_says_so(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 2, "train/yes": 2, "val/no": 1, "val/yes": 1})
    shutil.copy(folder / "train/no/0001.png", folder / "val/yes/copy.png")
    near_duplicate, contradiction = open_small(folder).summary.warnings

    assert "have a near-duplicate in train/" in near_duplicate
    assert f"{folder / 'val/yes/copy.png'} is 'yes'" in contradiction


def test_holdout_with_one_image_under_two_classes_says_so(make_site: MakeSite) -> None:
    folder = make_site({"no": 2, "yes": 2})
    shutil.copy(folder / "no/0001.png", folder / "yes/copy.png")
    _, summary = open_holdout(folder, {}, CLASSES, 16)

    assert [warning.split(":")[0] for warning in summary.warnings] == [
        "1 image is in folders of two classes, of which one must be wrong"
    ]


def test_site_with_tiff_files_of_several_pages_says_that_only_the_first_is_used(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 3, "train/yes": 3, "val/no": 1, "val/yes": 1})
    picture(90).save(folder / "train/no/one_page.tif")
    picture(91).save(folder / "train/no/volume.tif", save_all=True, append_images=[picture(92), picture(93)])
    (one,) = open_small(folder).summary.warnings
    picture(94).save(folder / "val/yes/volume.tif", save_all=True, append_images=[picture(95)])
    (two,) = open_small(folder).summary.warnings

    assert one == (
        f"1 TIFF file has several pages, of which only the first is used: {folder / 'train/no/volume.tif'}. If the "
        "others are slices to learn from, save each page as a file of its own"
    )
    assert two.startswith("2 TIFF files have several pages, of which only the first is used: ")


def test_site_counts_and_names_skipped_files_of_train_and_val(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 3, "train/yes": 3, "val/no": 1, "val/yes": 1})
    (folder / "train/no/empty.jpg").write_bytes(b"")
    (folder / "val/yes/notes.txt").write_text("moved")
    site = open_small(folder)
    assert site.summary.skipped == {"empty": 1, "not an image": 1}
    assert [file.path.name for file in site.skipped] == ["empty.jpg", "notes.txt"]
    assert [warning.split(":")[0] for warning in site.summary.warnings] == [
        "1 file skipped, empty",
        "1 file skipped, not an image",
    ]


def test_site_lacking_a_class_is_a_warning(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 10})
    site = open_small(folder)
    assert site.summary.counts == {"train": {"no": 8, "yes": 0}, "val": {"no": 2, "yes": 0}}
    assert site.summary.warnings == (
        f"{folder / 'train'} has no yes/; if it has another name here, write --classes no=FOLDER,yes=FOLDER",
        "train has no image of class 'yes'; metrics that need one are undefined there",
        "val has no image of class 'yes'; metrics that need one are undefined there",
    )


def test_site_of_one_image_has_an_empty_val_and_says_so(make_site: MakeSite) -> None:
    site = open_small(make_site({"train/no": 1, "train/yes": 0}))
    assert (len(site.train), len(site.val)) == (1, 0)
    assert site.val.load([]).shape == (0, 16, 16, 3)
    assert site.summary.warnings[-1] == (
        "val has no images: too few to split; early stopping and the site's own scores are off"
    )


def test_site_with_mapped_classes_has_the_tasks_labels(make_site: MakeSite) -> None:
    folder = make_site({"train/tumour": 3, "train/healthy": 4, "val/tumour": 1, "val/healthy": 2})
    site = open_small(folder, classes={"no": "healthy", "yes": "tumour"})
    assert site.summary.counts == {"train": {"no": 4, "yes": 3}, "val": {"no": 2, "yes": 1}}
    assert [path.parent.name for path in site.train.paths] == ["healthy"] * 4 + ["tumour"] * 3


def test_site_without_train_says_what_was_found_instead(make_site: MakeSite) -> None:
    folder = make_site({"no": 1, "yes": 1})
    with pytest.raises(TaskError) as caught:
        open_small(folder)
    assert str(caught.value) == (
        f"looked in {folder} for train/, with one folder of images per class (no, yes), and found no, yes; move the "
        f"class folders into {folder / 'train'} or give another folder as --data. Class folders of other names are "
        "mapped with --classes no=FOLDER,yes=FOLDER"
    )


@pytest.mark.parametrize(
    ("given", "found"), [("train", "no, yes"), ("val", "no"), ("train/no", "2 files"), ("train/yes", "1 file")]
)
def test_site_whose_folder_is_too_deep_is_told_which_to_give(make_site: MakeSite, given: str, found: str) -> None:
    folder = make_site({"train/no": 2, "train/yes": 1, "val/no": 1})
    with pytest.raises(TaskError) as caught:
        open_small(folder / given)
    assert str(caught.value).endswith(f"and found {found}; give the folder {folder} as --data")


def test_site_whose_folder_is_not_deep_enough_is_told_which_to_give(make_site: MakeSite) -> None:
    folder = make_site({"scans/train/no": 1, "scans/train/yes": 1})
    (folder / "notes.txt").write_text("of the ward")
    with pytest.raises(TaskError) as caught:
        open_small(folder)
    told = f"and found scans and 1 file; give the folder within it, {folder / 'scans'}, as --data"
    assert str(caught.value).endswith(told)


def test_site_of_files_alone_is_not_told_to_move_folders(make_site: MakeSite) -> None:
    folder = make_site({"no": 12})
    with pytest.raises(TaskError) as caught:
        open_small(folder / "no")
    assert "and found 12 files; give another folder as --data. Class folders of other" in str(caught.value)


@pytest.mark.parametrize("name", ["Train", "TRAIN", "Training"])
def test_site_whose_train_has_another_name_is_told_to_rename_it(make_site: MakeSite, name: str) -> None:
    folder = make_site({f"{name}/no": 1, f"{name}/yes": 1})
    with pytest.raises(TaskError) as caught:
        open_small(folder)
    assert str(caught.value).endswith(f"and found {name}; rename {name} to train")


def test_site_whose_val_has_another_name_is_told_that_it_is_not_read(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 3, "train/yes": 3, "Val/no": 1})
    assert open_small(folder).summary.warnings == (
        f"{folder / 'Val'} is not read: to validate on what is in it, rename it to val",
    )


def test_site_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"there is no folder .*/gone; give the one that holds train/<class>/\*"):
        open_small(tmp_path / "gone")


@pytest.mark.parametrize("num_shards", [1, 4])
def test_site_with_empty_class_folders_is_refused(make_site: MakeSite, num_shards: int) -> None:
    with pytest.raises(TaskError, match=r"no usable image in .*/train .* Its class folders are empty"):
        open_small(make_site({"train/no": 0, "train/yes": 0}), num_shards=num_shards)


def test_site_with_unusable_files_only_is_refused_and_they_are_named(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 0, "train/yes": 0})
    (folder / "train/no/scan.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "train/yes/moving.gif").write_bytes(b"GIF89a")
    with pytest.raises(TaskError) as caught:
        open_small(folder)
    assert str(caught.value) == (
        f"no usable image in {folder / 'train'} (looked for JPEG, PNG, BMP and TIFF in one folder per class: no, yes). "
        f"Found only files that cannot be used. 1 file skipped, DICOM: {folder / 'train/no/scan.dcm'} (export it to "
        "PNG first). DICOM is not read: export the slices to PNG first, for example with dcmj2pnm --write-png of DCMTK "
        f"(dcm2img in its newer versions). 1 file skipped, unsupported format: {folder / 'train/yes/moving.gif'} (GIF; "
        "JPEG, PNG, BMP and TIFF are read)"
    )


def test_site_with_an_empty_val_is_refused_and_the_way_out_is_named(make_site: MakeSite) -> None:
    with pytest.raises(TaskError, match=r"no usable image in .*/val .* Or remove that folder"):
        open_small(make_site({"train/no": 2, "train/yes": 2, "val/no": 0}))


def test_site_shards_divide_train_and_leave_val_to_the_coordinator(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 12, "train/yes": 20, "val/no": 2, "val/yes": 2})
    sites = [open_small(folder, shard=shard, num_shards=4) for shard in range(4)]
    paths = [path for site in sites for path in (*site.train.paths, *site.val.paths)]
    assert sorted(paths) == sorted((folder / "train").glob("*/*"))
    assert [len(site.train) + len(site.val) for site in sites] == [8] * 4
    assert [sum(counts["no"] for counts in site.summary.counts.values()) for site in sites] == [3] * 4


@pytest.mark.parametrize(
    ("in_val", "told"),
    [
        (
            {"val/yes/ana": 1, "val/no/gus": 1, "val/no": 1},
            "1 sub-folder of val/ is in train/ by the same name: ana. ",
        ),
        (
            {"val/no/ben": 1, "val/yes/ana": 1},
            "2 sub-folders of val/ are in train/ by the same name: ana, ben. ",
        ),
        ({"val/no/gus": 1, "val/yes": 1}, None),
    ],
)
def test_site_with_a_patient_in_train_and_in_val_is_told(
    make_site: MakeSite, in_val: dict[str, int], told: str | None
) -> None:
    folder = make_site({"train/no/ana": 2, "train/yes/ana": 2, "train/yes/ben": 2, "train/no": 1, **in_val})
    warnings = [warning for warning in open_small(folder).summary.warnings if "by the same name" in warning]
    assert [warning[: len(told or "")] for warning in warnings] == ([told] if told else [])


PATIENTS = {
    f"train/{name}/{patient}": 2 + place
    for name in CLASSES
    for place, patient in enumerate(["ana", "ben", "cleo", "dan", "eve"])
}


@pytest.mark.parametrize("division", ["even", "quantity", "dirichlet:0.5"])
def test_site_shards_leave_all_images_of_a_patient_at_one_site(make_site: MakeSite, division: str) -> None:
    folder = make_site(PATIENTS)
    sites = [open_small(folder, shard=shard, num_shards=3, division=division) for shard in range(3)]
    paths = [[*site.train.paths, *site.val.paths] for site in sites]
    assert sorted(path for one in paths for path in one) == sorted((folder / "train").glob("*/*/*"))
    seen = [{path.parent.name for path in one} for one in paths]
    assert all(seen)
    assert sum(map(len, seen)) == 5
    assert [warning for site in sites for warning in site.summary.warnings if "several clients" in warning] == []


def test_site_shards_part_the_only_sub_folder_of_a_class_and_say_so(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 12, "train/yes/batch": 12})
    sites = [open_small(folder, shard=shard, num_shards=3) for shard in range(3)]
    assert [len(site.train) + len(site.val) for site in sites] == [8] * 3
    told = "images of one sub-folder go to several clients: class 'yes' has only 1 sub-folder for 3. "
    assert all(any(warning.startswith(told) for warning in site.summary.warnings) for site in sites)


@pytest.mark.parametrize("shard", [-1, 4])
def test_site_shard_out_of_range_is_refused(make_site: MakeSite, shard: int) -> None:
    with pytest.raises(TaskError, match=rf"shard {shard} of 4: shards are counted from 0"):
        open_small(make_site({"train/no": 5, "train/yes": 5}), shard=shard, num_shards=4)


def test_site_weaknesses_are_read_from_the_folder(make_site: MakeSite) -> None:
    folder = make_site({"train/no": 2, "train/yes": 2})
    (folder / "WEAKNESSES.txt").write_text("- One scanner only\n\n  No children  \n", "utf-8")
    assert open_small(folder).summary.weaknesses == (NO_PATIENTS, "One scanner only", "No children")


@pytest.mark.parametrize(("places", "said"), [("p", PATIENTS_BY_FOLDER), ("images", NO_PATIENTS)])
def test_images_in_a_folder_for_each_patient_are_not_said_to_be_without_patients(
    make_site: MakeSite, places: str, said: str
) -> None:
    numbers = range(3) if places == "p" else [""]
    folder = make_site({f"train/{name}/{places}{number}": 2 for number in numbers for name in CLASSES})
    assert open_small(folder).summary.weaknesses == (said,)
    assert open_holdout(folder / "train", {}, CLASSES, 16)[1].weaknesses == (said,)


def test_holdout_reads_all_of_the_folder_and_looks_at_its_parent_for_weaknesses(make_site: MakeSite) -> None:
    folder = make_site({"val/no": 3, "val/yes": 2})
    (folder / "WEAKNESSES.txt").write_text("One scanner only\n", "utf-8")
    (folder / "PHANTOM.json").write_text("{}", "utf-8")
    (folder / "val/no/empty.png").write_bytes(b"")
    images, summary = open_holdout(folder / "val", {}, CLASSES, 16)
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert summary == SiteSummary(
        num_examples=5,
        counts={"holdout": {"no": 3, "yes": 2}},
        skipped={"empty": 1},
        warnings=(f"1 file skipped, empty: {folder / 'val/no/empty.png'} (0 bytes)",),
        weaknesses=(GENERATED, "One scanner only"),
        synthetic=True,
    )


def test_holdout_without_images_is_refused(make_site: MakeSite) -> None:
    with pytest.raises(TaskError, match="Its class folders are empty"):
        open_holdout(make_site({"val/no": 0}) / "val", {}, CLASSES, 16)


def test_real_slices_are_all_usable_and_their_twins_are_reported(brain_mri_folder: Path) -> None:
    site = open_site(SiteOptions(brain_mri_folder), CLASSES, 224, cache_bytes=50_000_000)
    assert site.summary.counts == {"train": {"no": 577, "yes": 1200}, "val": {"no": 124, "yes": 250}}
    assert site.summary.skipped == {}
    assert [warning[:47] for warning in site.summary.warnings] == ["83 of 374 images in val/ have a near-duplicate "]
    assert np.array_equal(site.val.load([3])[0], site.val.subset([3]).load([0])[0])
