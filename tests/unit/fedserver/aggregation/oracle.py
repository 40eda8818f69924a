"""The weighted mean in exact rational arithmetic, and the bound that is promised.

Written from the formulas, with nothing of the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from fedstream.dtypes import DataType
from fedstream.schema import ModelSchema, TensorSpec


def one_tensor(dtype: DataType, shape: tuple[int, ...]) -> ModelSchema:
    return ModelSchema((TensorSpec("kernel", dtype, shape),))


def exact_mean(weights: Sequence[Fraction], arrays: Sequence[np.ndarray]) -> list[Fraction]:
    """sum(w_i * x_i) / sum(w_i), element by element of the flat arrays, without rounding."""
    columns = zip(*([Fraction(float(value)) for value in array.reshape(-1)] for array in arrays), strict=True)
    return [
        sum((w * x for w, x in zip(weights, column, strict=True)), Fraction(0)) / sum(weights) for column in columns
    ]


def promised_bound(dtype: DataType, arrays: Sequence[np.ndarray]) -> Fraction:
    """One unit in the last place of the largest absolute value; for float64 2**-31 of it, or 2**-1032."""
    largest = max((abs(float(value)) for array in arrays for value in array.reshape(-1)), default=0.0)
    if dtype is DataType.FLOAT64:
        return max(Fraction(largest) / 2**31, Fraction(1, 2**1032))
    # numpy's own spacing overflows at the end of the range and does not know bfloat16.
    fraction_bits, lowest = {
        DataType.FLOAT16: (10, -14),
        DataType.BFLOAT16: (7, -126),
        DataType.FLOAT32: (23, -126),
    }[dtype]
    exponent = max(math.frexp(largest)[1] - 1, lowest) if largest else lowest
    return Fraction(2) ** (exponent - fraction_bits)


def worst_error(result: np.ndarray, exact: Sequence[Fraction]) -> Fraction:
    pairs = zip(result.reshape(-1), exact, strict=True)
    return max((abs(Fraction(float(value)) - mean) for value, mean in pairs), default=Fraction(0))


def bits(model: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.items()}
