"""Augmentation of slices. Takes a second, and the import of tensorflow."""

from __future__ import annotations

import numpy as np

from fedtask.brain_mri.augmentation import Change, apply_changes, draw_change, variant_change

STILL = Change(mirror=False, turn=0.0, shift_x=0.0, shift_y=0.0, gain=1.0, offset=0.0)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)


def changed(image: np.ndarray, **change: float) -> np.ndarray:
    fields = {name: getattr(STILL, name) for name in Change.__slots__}
    return np.asarray(apply_changes(image, [Change(**{**fields, **change})]))


def test_no_change_leaves_the_pixels_as_they_are():
    np.testing.assert_array_equal(changed(picture()), picture())


def test_mirror_swaps_left_and_right():
    np.testing.assert_allclose(changed(picture(), mirror=True), picture()[:, :, ::-1], atol=1e-3)


def test_shift_moves_right_and_down_and_lets_black_in():
    moved = changed(picture(), shift_x=2 / 32, shift_y=1 / 32)
    np.testing.assert_allclose(moved[:, 1:, 2:], picture()[:, :-1, :-2], atol=1e-3)
    assert not moved[:, 0].any()
    assert not moved[:, :, :2].any()


def test_quarter_turn_is_numpys():
    turned = changed(picture(), turn=np.pi / 2)[0]
    candidates = [np.rot90(picture()[0], k) for k in (1, 3)]
    assert min(np.abs(turned - candidate).max() for candidate in candidates) < 0.1


def test_gain_and_offset_are_clipped_to_grey_values():
    bright = changed(picture(), gain=1.5, offset=10.0)
    np.testing.assert_allclose(bright, np.clip(picture() * 1.5 + 10.0, 0, 255), atol=1e-3)


def test_each_image_of_a_batch_gets_its_own_change():
    both = np.concatenate([picture(1), picture(2)])
    mirror = variant_change("0" * 64, 1, 1.0)
    result = np.asarray(apply_changes(both, [STILL, mirror]))
    np.testing.assert_allclose(result, np.concatenate([picture(1), picture(2)[:, :, ::-1]]), atol=1e-3)


def test_drawn_changes_stay_in_range_and_scale_with_strength():
    drawn = [draw_change(np.random.default_rng(seed), 1.0) for seed in range(200)]
    assert max(abs(change.turn) for change in drawn) <= 0.2
    assert max(abs(change.shift_x) for change in drawn) <= 0.06
    assert 0.4 < np.mean([change.mirror for change in drawn]) < 0.6
    weak = draw_change(np.random.default_rng(0), 0.5)
    assert weak.turn == drawn[0].turn / 2


def test_variant_is_the_images_own():
    assert variant_change("a" * 64, 0, 1.0) is None
    assert variant_change("a" * 64, 2, 1.0) == variant_change("a" * 64, 2, 1.0)
    assert variant_change("a" * 64, 2, 1.0) != variant_change("b" * 64, 2, 1.0)
    assert variant_change("a" * 64, 2, 1.0) != variant_change("a" * 64, 3, 1.0)
