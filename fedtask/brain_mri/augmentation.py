"""Augmentation of MRI slices: mirroring, small shifts and turns, brightness and contrast. Imports tensorflow.

The range is what a scan of another patient or scanner could look like: heads lie a little askew and off-centre, and
MRI has no absolute grey values. Left and right are mirrored, since a tumour may lie on either side; up and down are
not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtask.frameworks import tf

VERSION = 1
"""Raised with every change to the pictures: features kept of an older version go out of use."""

_MOST_SHIFT = 0.06
"""Of the side."""
_MOST_TURN = 0.2
"""Radians: 11 degrees."""
_MOST_GAIN = 0.2
"""Of the contrast, as the logarithm."""
_MOST_BRIGHTNESS = 12.0
"""Of 255."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to one image. Shifts are parts of the side, `turn` is in radians, `offset` is of 255."""

    mirror: bool
    turn: float
    shift_x: float
    shift_y: float
    gain: float
    offset: float


def draw_change(rng: np.random.Generator, strength: float) -> Change:
    """A change by chance; `strength` scales all of it but the mirroring."""
    turn, shift_x, shift_y, gain, offset = (rng.uniform(-1, 1, 5) * strength).tolist()
    return Change(
        mirror=bool(rng.random() < 0.5),
        turn=turn * _MOST_TURN,
        shift_x=shift_x * _MOST_SHIFT,
        shift_y=shift_y * _MOST_SHIFT,
        gain=float(np.exp(gain * _MOST_GAIN)),
        offset=offset * _MOST_BRIGHTNESS,
    )


def variant_change(image_id: str, variant: int, strength: float) -> Change | None:
    """The change that makes one of an image's kept variants, the same wherever and whenever it is made.

    Variant 0 is the image itself (`None`), 1 its mirror image, and all further ones are drawn.
    """
    if variant == 0:
        return None
    if variant == 1:
        return Change(mirror=True, turn=0.0, shift_x=0.0, shift_y=0.0, gain=1.0, offset=0.0)
    return draw_change(np.random.default_rng([VERSION, variant, int(image_id[:16], 16)]), strength)


def apply_changes(images: Any, changes: list[Change]) -> Any:
    """Images `[n, size, size, 3]` of 0 to 255 as a changed float32 tensor; black comes in from outside."""
    size = images.shape[1]
    transforms = np.array([_transform(change, size) for change in changes], np.float32)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=transforms,
        output_shape=np.array([size, size], np.int32),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    gain = np.array([change.gain for change in changes], np.float32)[:, None, None, None]
    offset = np.array([change.offset for change in changes], np.float32)[:, None, None, None]
    return tf.clip_by_value(moved * gain + offset, 0.0, 255.0)


def _transform(change: Change, size: int) -> Floats:
    """The eight numbers that lead from a pixel of the result to one of the image, about the image's middle."""
    cos, sin = np.cos(change.turn), np.sin(change.turn)
    flip = -1.0 if change.mirror else 1.0
    middle = (size - 1) / 2
    matrix = np.array([[flip * cos, -flip * sin], [sin, cos]])
    shift = np.array([change.shift_x, change.shift_y]) * size
    offset = np.array([middle, middle]) - matrix @ (np.array([middle, middle]) + shift)
    return np.array([*matrix[0], offset[0], *matrix[1], offset[1], 0, 0], np.float32)
