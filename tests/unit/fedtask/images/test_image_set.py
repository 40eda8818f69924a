"""fedtask.images.image_set: order, laziness, the memory budget, and files that change. Takes about a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedtask.images.decode import decode_image
from fedtask.images.folders import examine, list_folder
from fedtask.images.image_set import ImageSet, PixelCache, pixel_id
from fedtask.task import TaskError

IMAGE_BYTES = 16 * 16 * 3


@pytest.fixture
def open_set(tmp_path: Path, write_pictures: Callable[[Path, int, int], list[Path]]) -> Callable[[int], ImageSet]:
    """Opens six pictures, three of each class, with a cache of so many images."""
    write_pictures(tmp_path / "no", 3, 0)
    write_pictures(tmp_path / "yes", 3, 100)

    def open_with_room_for(num_images: int) -> ImageSet:
        listing = list_folder(tmp_path, ("no", "yes"), {})
        examined = examine(listing, 16, PixelCache(num_images * IMAGE_BYTES))
        assert examined.skipped == ()
        return examined.images

    return open_with_room_for


def test_image_set_order_is_that_of_classes_then_names(open_set: Callable[[int], ImageSet], tmp_path: Path) -> None:
    images = open_set(6)
    names = ["no/0000.png", "no/0001.png", "no/0002.png", "yes/0100.png", "yes/0101.png", "yes/0102.png"]
    assert images.paths == tuple(tmp_path / name for name in names)
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.labels.dtype == np.int64
    assert (len(images), images.size) == (6, 16)


@pytest.mark.parametrize("room", [0, 2, 6])
def test_load_gives_each_image_in_the_order_asked_for_whatever_is_cached(
    open_set: Callable[[int], ImageSet], room: int
) -> None:
    images = open_set(room)
    indices = np.array([5, 0, 3, 0])
    expected = np.stack([decode_image(images.paths[index], 16) for index in indices])
    for _ in range(2):
        loaded = images.load(indices)
        assert loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, expected)


def test_load_of_nothing_gives_an_empty_batch(open_set: Callable[[int], ImageSet]) -> None:
    assert open_set(6).load([]).shape == (0, 16, 16, 3)


def test_load_result_may_be_written_to_without_hurting_the_cache(open_set: Callable[[int], ImageSet]) -> None:
    images = open_set(6)
    first = images.load([1])
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(images.load([1]), expected)


def test_load_within_budget_does_not_read_files_again(open_set: Callable[[int], ImageSet]) -> None:
    images = open_set(6)
    for path in images.paths:
        path.unlink()
    assert images.load(range(6)).shape == (6, 16, 16, 3)


def test_load_beyond_budget_reads_the_file_and_says_when_it_is_gone(open_set: Callable[[int], ImageSet]) -> None:
    images = open_set(0)
    images.paths[4].unlink()
    assert images.load([0, 1, 2, 3, 5]).shape == (5, 16, 16, 3)
    with pytest.raises(TaskError, match=r"yes/0101\.png could be read when the folder was opened, but no longer"):
        images.load([4])


def test_load_of_a_file_that_has_changed_says_so(open_set: Callable[[int], ImageSet]) -> None:
    images = open_set(0)
    Image.new("L", (16, 16), 3).save(images.paths[2])
    with pytest.raises(TaskError, match=r"no/0002\.png has changed since the folder was opened"):
        images.load([2])


def test_subset_keeps_what_belongs_together(open_set: Callable[[int], ImageSet]) -> None:
    images = open_set(6)
    some = images.subset(np.array([4, 1]))
    assert (len(some), some.size) == (2, 16)
    assert some.paths == (images.paths[4], images.paths[1])
    assert some.ids == (images.ids[4], images.ids[1])
    assert some.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(some.fingerprints, images.fingerprints[[4, 1]])
    np.testing.assert_array_equal(some.load([0, 1]), images.load([4, 1]))


def test_ids_are_the_digest_of_pixels_and_not_of_files(tmp_path: Path) -> None:
    (tmp_path / "no").mkdir()
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for name in ("a.png", "b.bmp"):
        image.save(tmp_path / "no" / name)
    image.rotate(90).save(tmp_path / "no" / "c.png")
    images = examine(list_folder(tmp_path, ("no",), {}), 16, PixelCache()).images
    assert images.ids[0] == images.ids[1] == pixel_id(images.load([0])[0])
    assert images.ids[0] != images.ids[2]
    assert len(images.ids[0]) == 64


def test_pixel_id_tells_shapes_of_the_same_bytes_apart() -> None:
    values = np.arange(12, dtype=np.uint8)
    assert pixel_id(values.reshape(2, 2, 3)) != pixel_id(values.reshape(4, 1, 3))


def test_pixel_cache_keeps_the_first_images_and_never_exceeds_its_budget() -> None:
    cache = PixelCache(2 * IMAGE_BYTES + 5)
    pixels = [np.full((16, 16, 3), value, np.uint8) for value in range(3)]
    for name, image in zip("abc", pixels, strict=True):
        cache.offer(name, image)
        cache.offer(name, image)
    assert cache.size_bytes == 2 * IMAGE_BYTES
    kept = [cache.get(name) for name in "abc"]
    assert [None if image is None else int(image[0, 0, 0]) for image in kept] == [0, 1, None]
