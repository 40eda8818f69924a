"""One generated axial slice of a head: ellipses, smooth noise and a lesion or none. Nothing of it comes from a scan.

Coordinates are those of the head: x to the viewer's right and y to the back of the head, both about -1 to 1, turned
and moved against the picture. `radius` is 0 in the middle of the head and 1 on the skin. A tissue is painted over what
lies under it wherever its signed distance is negative.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]
"""`float32 [size, size]`."""


@dataclass(frozen=True, slots=True)
class _Contrast:
    """Signal of each tissue in one kind of sequence, 0 to 1; `swelling` is that of the oedema round a lesion."""

    scalp: float
    bone: float
    fluid: float
    grey: float
    white: float
    swelling: float


_T1 = _Contrast(scalp=0.70, bone=0.10, fluid=0.14, grey=0.46, white=0.62, swelling=0.36)
_T2 = _Contrast(scalp=0.55, bone=0.08, fluid=0.74, grey=0.56, white=0.40, swelling=0.70)
_FLAIR = _Contrast(scalp=0.60, bone=0.08, fluid=0.12, grey=0.55, white=0.44, swelling=0.70)
_CONTRASTS = (_T1, _T2, _FLAIR)

_EDGE = 0.025
"""Width over which one tissue passes into the next: two to three pixels of 224."""


@dataclass(frozen=True, slots=True)
class _Head:
    """Where each pixel lies in the head."""

    x: Plane
    y: Plane
    radius: Plane


def draw_slice(seed: tuple[int, ...], has_lesion: bool, difficulty: float, size: int) -> npt.NDArray[np.uint8]:
    """One slice as grey values `uint8 [size, size]`; the same arguments give the same picture.

    `difficulty`, 0 to 1 inclusive, makes lesions smaller and fainter and the noise stronger. Everything but the lesion
    is drawn from the same numbers with and without one, and the brightness is set last from numbers of its own: what
    tells the classes apart is the lesion.
    """
    anatomy, lesion, camera = (np.random.default_rng([*seed, part]) for part in range(3))
    contrast = _vary(_CONTRASTS[anatomy.integers(len(_CONTRASTS))], anatomy)
    head = _place_head(anatomy, size)
    picture = _paint_anatomy(head, contrast, anatomy)
    if has_lesion:
        picture = _paint_lesion(picture, head, contrast, difficulty, lesion)
    return _expose(picture, difficulty, camera)


def _vary(contrast: _Contrast, rng: np.random.Generator) -> _Contrast:
    def about(signal: float) -> float:
        return signal * rng.uniform(0.88, 1.12)

    return _Contrast(
        scalp=about(contrast.scalp),
        bone=about(contrast.bone),
        fluid=about(contrast.fluid),
        grey=about(contrast.grey),
        white=about(contrast.white),
        swelling=about(contrast.swelling),
    )


def _place_head(rng: np.random.Generator, size: int) -> _Head:
    axis = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    angle = math.radians(rng.normal(0.0, 7.0))
    right, down = axis[None, :] - rng.normal(0.0, 0.03), axis[:, None] - rng.normal(0.0, 0.03)
    x = right * math.cos(angle) + down * math.sin(angle)
    y = down * math.cos(angle) - right * math.sin(angle)
    half_width, half_length = rng.uniform(0.64, 0.76), rng.uniform(0.80, 0.92)
    # Heads are narrower in front, and never quite an ellipse.
    narrowed = x / (half_width * (1.0 + 0.10 * y))
    radius = np.hypot(narrowed, y / half_length) * (1.0 + 0.012 * smooth_noise(rng, 5, size))
    return _Head(x, y, radius)


def _paint_anatomy(head: _Head, contrast: _Contrast, rng: np.random.Generator) -> Plane:
    size = len(head.x)
    picture = np.zeros((size, size), np.float32)
    skull = rng.uniform(0.90, 0.93)
    brain = skull - rng.uniform(0.06, 0.09)
    picture = _over(picture, contrast.scalp, head.radius - 1.0)
    picture = _over(picture, contrast.bone, head.radius - skull - 0.03)
    picture = _over(picture, contrast.bone * 2.5, np.abs(head.radius - skull + 0.005) - 0.008)
    picture = _over(picture, contrast.fluid, head.radius - brain - 0.02)
    picture = _over(picture, contrast.grey, head.radius - brain + 0.012 * smooth_noise(rng, 16, size))
    picture = _paint_folds(picture, head, contrast, brain, rng)
    picture = _paint_midline(picture, head, contrast, brain, rng)
    texture = 1.0 + 0.035 * smooth_noise(rng, 8, size) + 0.025 * smooth_noise(rng, 40, size)
    return picture * np.where(head.radius < brain, texture, np.float32(1.0))


def _paint_folds(picture: Plane, head: _Head, contrast: _Contrast, brain: float, rng: np.random.Generator) -> Plane:
    """White matter with a crumpled edge, and the sulci: fluid along the zero lines of a noise, near the surface."""
    size = len(head.x)
    crumple = 0.06 * smooth_noise(rng, 13, size) + 0.06 * smooth_noise(rng, 26, size)
    white = np.maximum(head.radius - brain + 0.16 + crumple, head.radius - brain + 0.03)
    picture = _over(picture, contrast.white, white)
    folds = smooth_noise(rng, 17, size)
    depth = np.clip((head.radius - brain + 0.24) / 0.16, 0.0, 1.0) * (head.radius < brain)
    sulci = np.clip(1.0 - np.abs(folds) / 0.26, 0.0, 1.0) * depth * 0.7
    return cast(Plane, picture + (contrast.fluid - picture) * sulci)


def _paint_midline(picture: Plane, head: _Head, contrast: _Contrast, brain: float, rng: np.random.Generator) -> Plane:
    """The fissure between the hemispheres, the deep grey nuclei and the two lateral ventricles."""
    wiggle = 0.012 * smooth_noise(rng, 6, len(head.x))
    fissure = cast(Plane, np.abs(head.x + wiggle) - 0.008)
    outside_middle = cast(Plane, np.clip((np.abs(head.y) - 0.22) / 0.1, 0.0, 1.0) * (head.radius < brain))
    picture = picture + (_over(picture, contrast.fluid, fissure) - picture) * outside_middle * 0.8
    length, width = rng.uniform(0.22, 0.42), rng.uniform(0.03, 0.085)
    along = (head.y - rng.uniform(-0.05, 0.05)) / length
    for side in (-1.0, 1.0):
        across = side * head.x
        nucleus = np.hypot((across - 0.20) / 0.10, (head.y - 0.02) / 0.17) - 1.0
        picture = _over(picture, contrast.grey, nucleus * 0.1)
        # Wide in the middle, closing at both ends, with the horns bent outwards: a butterfly's wing.
        opening = width * rng.uniform(0.85, 1.15) * np.sqrt(np.clip(1.0 - along**2, 0.0, 1.0))
        bent = np.abs(across - 0.045 - 0.13 * along**2) - opening
        picture = _over(picture, contrast.fluid, np.where(np.abs(along) < 1.0, bent, np.float32(1.0)))
    return picture


def _paint_lesion(
    picture: Plane, head: _Head, contrast: _Contrast, difficulty: float, rng: np.random.Generator
) -> Plane:
    """A blob anywhere in the brain: solid, or a bright rim round a dark core, with swelling round it."""
    bearing, distance = rng.uniform(0.0, 2.0 * math.pi), rng.uniform(0.18, 0.55)
    extent = rng.uniform(0.15, 0.26) * (1.0 - 0.6 * difficulty)
    right, back = head.x - distance * math.cos(bearing), head.y - 1.2 * distance * math.sin(bearing)
    tilt, stretch = rng.uniform(0.0, math.pi), rng.uniform(1.0, 1.5)
    long = (right * math.cos(tilt) + back * math.sin(tilt)) / stretch
    short = back * math.cos(tilt) - right * math.sin(tilt)
    edge = cast(Plane, np.hypot(long, short) / extent + 0.14 * smooth_noise(rng, 9, len(head.x)))
    in_brain = _inside(head.radius - 0.84)
    strength = 1.0 - 0.75 * difficulty
    swollen = cast(Plane, np.clip(1.9 - edge, 0.0, 1.0)) * in_brain * strength * rng.uniform(0.2, 0.8)
    picture = picture + (contrast.swelling - picture) * swollen
    signal = rng.uniform(1.1, 1.35)
    core = np.full_like(picture, signal) * (1.0 + 0.06 * smooth_noise(rng, 24, len(head.x)))
    if rng.random() < 0.4:
        rim = rng.uniform(0.25, 0.4)
        core = _over(core, rng.uniform(0.15, 0.4), (edge - 1.0 + rim) * extent)
    covered = _inside((edge - 1.0) * extent) * in_brain * strength
    return picture + (core - picture) * covered


def _expose(picture: Plane, difficulty: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """What a scanner adds: an uneven field, Rician noise, and a brightness of its own choice."""
    size = len(picture)
    field = 1.0 + rng.uniform(0.04, 0.14) * smooth_noise(rng, 2, size)
    sigma = rng.uniform(0.012, 0.03) * (1.0 + 2.0 * difficulty)
    real, imaginary = (sigma * rng.standard_normal((size, size), np.float32) for _ in range(2))
    signal = np.hypot(picture * np.clip(field, 0.5, 1.5) + real, imaginary)
    # The mean is set to a number that knows nothing of the lesion: otherwise it would give the lesion away.
    gain = rng.uniform(38.0, 56.0) / signal.mean()
    return cast(npt.NDArray[np.uint8], np.clip(np.rint(signal * gain), 0, 255).astype(np.uint8))


def smooth_noise(rng: np.random.Generator, cells: int, size: int) -> Plane:
    """Gaussian noise with `cells` bumps along a side: mean 0, variance 1 at each pixel, `float32 [size, size]`.

    Summed tap by tap rather than as a product of matrices: with several processes on a machine, small products in
    threaded BLAS take ten times as long, and their last bits differ between processors.
    """
    points, weights = _bumps(cells, size)
    grid = rng.standard_normal((cells + _TAPS, cells + _TAPS), np.float32)
    rows = sum(weight[:, None] * grid[at, :] for at, weight in zip(points, weights, strict=True))
    columns = np.ascontiguousarray(rows.T)
    return cast(Plane, sum(weight[:, None] * columns[at, :] for at, weight in zip(points, weights, strict=True)))


_TAPS = 4
"""Grid points that reach a pixel; the next one would weigh less than 0.005 of the nearest."""


@functools.cache
def _bumps(cells: int, size: int) -> tuple[npt.NDArray[np.int64], Plane]:
    """Which grid points reach each pixel of an axis, and their weights, each `[taps, size]`.

    Weights are a Gaussian of 0.55 cells, with unit length over the taps so that the variance is 1 everywhere.
    """
    pixels = np.linspace(0.0, cells, size)
    points = np.floor(pixels).astype(np.int64)[None, :] + np.arange(_TAPS)[:, None]
    weights = np.exp(-((pixels[None, :] + 1.0 - points) ** 2) / (2.0 * 0.55**2))
    return points, cast(Plane, (weights / np.linalg.norm(weights, axis=0)).astype(np.float32))


def _inside(distance: Plane) -> Plane:
    return cast(Plane, np.clip(0.5 - distance / _EDGE, 0.0, 1.0))


def _over(picture: Plane, signal: float, distance: Plane) -> Plane:
    return cast(Plane, picture + (np.float32(signal) - picture) * _inside(distance))
