"""How fine the grid is, and when that is not enough. A moment."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from fedserver.aggregation.grid import Grid
from fedstream.dtypes import DataType


@pytest.mark.parametrize(
    ("dtype", "base_largest", "total_weight", "exponent", "limit"),
    [
        (DataType.FLOAT32, 0.0, 1.0, 16 - 62, 2.0**16),
        (DataType.FLOAT32, 0.9, 4.0, 2 + 16 - 62, 2.0**16),
        (DataType.FLOAT32, 1.1, 4.1, 3 + 17 - 62, 2.0**17),
        (DataType.FLOAT32, 3e38, 1.0, 128 - 62, 2.0**128),
        (DataType.FLOAT16, 65504.0, 1.0, 16 - 62, 2.0**16),
        (DataType.FLOAT64, 1.7e308, 2.0**57, 57 + 1024 - 62, math.inf),
    ],
)
def test_grid_follows_the_base_with_a_floor_and_headroom(
    dtype: DataType, base_largest: float, total_weight: float, exponent: int, limit: float
) -> None:
    grid = Grid.for_tensor(dtype, base_largest, total_weight)
    assert (grid.exponent, grid.limit) == (exponent, limit)


@pytest.mark.parametrize(
    ("dtype", "largest", "bound"),
    [
        (DataType.FLOAT32, 1.0, Fraction(1, 2**23)),
        (DataType.FLOAT32, 1.9999, Fraction(1, 2**23)),
        (DataType.FLOAT32, 1e-45, Fraction(1, 2**149)),
        (DataType.FLOAT16, 0.5, Fraction(1, 2**11)),
        (DataType.BFLOAT16, 0.5, Fraction(1, 2**8)),
        (DataType.FLOAT64, 0.5, Fraction(1, 2**32)),
    ],
)
def test_tensor_is_too_coarse_once_roundings_may_cost_more_than_a_quarter_of_the_bound(
    dtype: DataType, largest: float, bound: Fraction
) -> None:
    grid = Grid(dtype, exponent=-40, limit_exponent=16)
    # The sum of weights at which five roundings cost just a quarter.
    at_the_limit = float(5 * Fraction(2) ** -40 * 2 / bound)
    assert not grid.is_too_coarse(5, at_the_limit, largest)
    assert grid.is_too_coarse(5, math.nextafter(at_the_limit, 0), largest)
    assert grid.is_too_coarse(6, at_the_limit, largest)


def test_zeros_are_exact_on_every_grid() -> None:
    assert not Grid(DataType.FLOAT32, exponent=60, limit_exponent=16).is_too_coarse(1000, 1e-9, 0.0)
