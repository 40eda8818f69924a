"""The inner loops against plain Python. A moment."""

from __future__ import annotations

import numpy as np
import pytest

from fedserver.aggregation import kernels
from fedserver.aggregation.blocks import Span

VALUES = np.array([0.0, -0.0, 0.5, 1.5, -0.5, -2.5, 1e-300, 0.49999999999999994, 3.7, -(2.0**50), 2.0**50 - 0.25])


def units(values: np.ndarray, *, small: bool) -> list[int]:
    """What an addition to zero leaves, with the lifts taken off, as Python integers modulo 2**64."""
    total = np.zeros(values.size, np.int64)
    addition = kernels.Addition(total, lambda: values, 1.0, small, kernels.Direction.IN)
    kernels.adder({0: addition}, 4)(Span(0, 0, values.size))
    return [(int(unit) - small * kernels.LIFT_BITS) % 2**64 for unit in total]


@pytest.mark.parametrize("small", [True, False])
def test_both_paths_round_to_the_nearest_integer_ties_to_even(small: bool) -> None:
    assert units(VALUES, small=small) == [round(value) % 2**64 for value in VALUES.tolist()]


def test_large_path_keeps_every_bit_up_to_the_sum_of_a_cohort() -> None:
    values = np.array([2.0**62, -(2.0**62), 2.0**53 + 2, 2.0**52 + 1, -(2.0**51) - 0.5])
    assert units(values, small=False) == [round(value) % 2**64 for value in values.tolist()]
