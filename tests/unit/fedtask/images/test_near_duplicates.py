"""fedtask.images.near_duplicates: against a plain loop, on altered pictures, and on real slices. About 3 seconds."""

from __future__ import annotations

import io
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fedtask.images.near_duplicates import NEAR_DISTANCE, Fingerprints, fingerprint, first_near, near_groups, near_pairs
from tests.unit.fedtask.images.conftest import picture


def fingerprint_of(image: Image.Image) -> Fingerprints:
    return fingerprint(np.asarray(image.convert("RGB").resize((96, 96))))


def distance(first: Image.Image, second: Image.Image) -> int:
    return int(np.bitwise_count(fingerprint_of(first) ^ fingerprint_of(second)).sum())


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def random_prints(count: int, seed: int) -> Fingerprints:
    """Fingerprints in families: copies of one with some bits flipped, from none to about twice the threshold."""
    rng = np.random.default_rng(seed)
    bits = np.repeat(rng.integers(0, 2, (count // 5, 256), dtype=np.uint8), 5, axis=0)
    flips = rng.random(bits.shape) < rng.uniform(0, 0.13, (len(bits), 1))
    return np.packbits(bits ^ flips, axis=1).view(np.uint64)


@pytest.mark.parametrize("seed", range(5))
def test_fingerprint_of_an_altered_picture_is_near_and_of_another_is_far(seed: int) -> None:
    original = picture(seed, 128)
    altered = [
        as_jpeg(original, 40),
        original.resize((70, 70)),
        ImageEnhance.Brightness(original).enhance(0.7),
        ImageEnhance.Contrast(original).enhance(0.6),
        original.convert("L"),
    ]
    assert max(distance(original, other) for other in altered) <= NEAR_DISTANCE
    others = [original.rotate(90), original.transpose(Image.Transpose.FLIP_LEFT_RIGHT), picture(seed + 100, 128)]
    assert min(distance(original, other) for other in others) > 2 * NEAR_DISTANCE


def test_fingerprints_of_plain_pictures_are_alike() -> None:
    assert distance(Image.new("L", (50, 50), 3), Image.new("L", (50, 50), 211)) == 0


def test_near_pairs_are_those_of_a_plain_loop_at_every_distance() -> None:
    mine, yours = random_prints(300, 0), np.concatenate([random_prints(300, 0)[::2], random_prints(50, 1)])
    apart = np.array([[int(a ^ b).bit_count() for b in flatten(yours)] for a in flatten(mine)])
    for limit in (0, 3, NEAR_DISTANCE, 60):
        np.testing.assert_array_equal(near_pairs(mine, yours, limit), np.argwhere(apart <= limit))
    assert 0 < np.count_nonzero(apart <= NEAR_DISTANCE) < apart.size


def flatten(prints: Fingerprints) -> list[int]:
    return [int.from_bytes(row.tobytes(), "little") for row in prints]


def test_near_pairs_with_an_empty_side_are_none() -> None:
    some, none = random_prints(10, 0), np.empty((0, 4), np.uint64)
    assert near_pairs(some, none).shape == (0, 2)
    assert near_pairs(none, some).shape == (0, 2)


def test_near_groups_follow_chains_and_are_named_by_their_first_image() -> None:
    prints = np.zeros((600, 4), np.uint64)
    prints[:, 0] = 2 ** np.arange(600, dtype=np.uint64) % np.uint64(2**63)
    prints[:, 1:] = np.random.default_rng(0).integers(0, 2**63, (600, 3), dtype=np.uint64)
    near_own, far = (1 << NEAR_DISTANCE) - 1, (1 << 2 * NEAR_DISTANCE) - 1
    prints[[7, 300, 599], 1:] = 0  # a chain across blocks: 599 ~ 300 ~ 7, but not 599 ~ 7
    prints[[599, 300, 7], 0] = np.array([0, near_own, far], np.uint64)
    expected = np.arange(600)
    expected[[300, 599]] = 7
    np.testing.assert_array_equal(near_groups(prints), expected)
    assert near_pairs(prints[[599]], prints[[7]]).shape == (0, 2)


def test_near_groups_of_ten_thousand_images_take_seconds() -> None:
    prints = random_prints(10_000, 3)
    start = time.process_time()
    groups = near_groups(prints)
    assert time.process_time() - start < 20  # 0.6 to 0.9 s on 2 cores
    assert 2000 <= len(np.unique(groups)) < 10_000
    np.testing.assert_array_equal(groups // 5, np.arange(10_000) // 5)


def test_first_near_is_the_first_partner_of_the_plain_pairs_also_among_repetitions() -> None:
    mine = np.concatenate([random_prints(100, 0), random_prints(20, 7)])
    yours = np.concatenate([random_prints(100, 0)[::-3], random_prints(50, 1)[[4, 4, 4]], random_prints(100, 0)[::2]])
    expected = np.full(len(mine), -1)
    for i, j in near_pairs(mine, yours)[::-1]:
        expected[i] = j
    np.testing.assert_array_equal(first_near(mine, yours), expected)
    assert set(np.sign(expected)) >= {-1, 1}
    assert first_near(mine, yours[:0]).tolist() == [-1] * len(mine)
    assert first_near(mine[:0], yours).tolist() == []


def test_thousands_of_equal_images_are_told_in_little_memory() -> None:
    prints = np.concatenate([random_prints(5, 0)[[1] * 4000], random_prints(10, 5)])
    tracemalloc.start()
    try:
        groups, twins = near_groups(prints), first_near(prints, prints)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (set(groups[:4000]), set(twins[:4000])) == ({0}, {0})
    assert peak < 8_000_000  # all pairs of them would take 256 MB


def test_near_pairs_of_real_slices_are_never_of_two_classes(brain_mri_folder: Path) -> None:
    paths = sorted((brain_mri_folder / "val").glob("*/*.jpg"))
    prints = np.stack([fingerprint(np.asarray(Image.open(path).convert("RGB"))) for path in paths])
    pairs = near_pairs(prints, prints)
    twins = [(paths[i], paths[j]) for i, j in pairs if i < j]
    assert 5 <= len(twins) <= 40
    assert [pair for pair in twins if pair[0].parent != pair[1].parent] == []
