"""Walking over tensors, and the memory of sums. A moment."""

from __future__ import annotations

import numpy as np
import pytest

from fedserver.aggregation.blocks import zeros
from tests.support.this_process import own_mib

pytestmark = pytest.mark.numpy_task


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [3], [0, 3, 0, 5, 1], [1 << 17, 1, 1 << 17]])
def test_zeros_are_arrays_of_those_lengths_that_do_not_overlap(lengths: list[int]) -> None:
    arrays = zeros(lengths)
    assert [(array.dtype, array.size, int(array.any())) for array in arrays] == [(np.int64, n, 0) for n in lengths]
    for number, array in enumerate(arrays, start=1):
        array[:] = number
    assert [set(array.tolist()) for array in arrays] == [{n} if size else set() for n, size in enumerate(lengths, 1)]


def test_zeros_let_go_give_their_memory_back_at_once() -> None:
    before = own_mib()
    arrays = zeros([1 << 18] * 16)  # 2 MiB each
    for array in arrays:
        array[:] = 1
    assert own_mib() - before > 30
    del arrays, array
    assert own_mib() - before < 4
