"""The fixed-point grid of one tensor, and when it is fine enough.

Every product of weight and value is rounded once to a multiple of 2**exponent and summed as int64. Integer sums are
associative, so neither order nor threads can change a bit. Everything here is a function of the base model, the
cohort's largest possible sum of weights, and the set of updates, never of their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from fedstream.dtypes import DataType

HEADROOM_BITS = 16
"""An update may grow to 2**16 times the base's largest value; a training that goes beyond has diverged."""

SCALE_FLOOR = 1.0
"""Smallest scale of a tensor. 105 of the 262 tensors of a fresh MobileNetV2 are all zero, and a trained bias may pass
close to zero by chance: both have no scale of their own, and honest updates must not be refused for that."""

SUM_BITS = 62
"""Largest sum in grid units, as a power of two: one bit below int64's 2**63, which the roundings cannot use up."""

MAX_UPDATES = 2**20
"""Most updates in one aggregate: their roundings add at most 2**19 grid units, and float64 sums stay within bounds."""


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """The precision a dtype is promised: `fraction_bits` after the leading one, exponents of values in
    [2**min_exponent, 2**max_exponent)."""

    fraction_bits: int
    min_exponent: int
    max_exponent: int

    def bound_exponent(self, largest: float) -> int:
        """Exponent of the error bound: one unit in the last place of `largest`, which is above 0."""
        return max(math.frexp(largest)[1] - 1, self.min_exponent) - self.fraction_bits


FORMATS = {
    DataType.FLOAT16: FloatFormat(10, -14, 16),
    DataType.BFLOAT16: FloatFormat(7, -126, 128),
    DataType.FLOAT32: FloatFormat(23, -126, 128),
    # float64 is promised 32 significant bits, not 53, since 62 bits hold headroom and weights as well; and near its
    # denormals an absolute 2**-1032, which leaves room for the roundings of 2**20 updates.
    DataType.FLOAT64: FloatFormat(31, -1001, 1024),
}


@dataclass(frozen=True, slots=True)
class Grid:
    """Multiples of 2**exponent that hold values up to 2**limit_exponent in absolute value, inclusive."""

    dtype: DataType
    exponent: int
    limit_exponent: int

    @classmethod
    def for_tensor(cls, dtype: DataType, base_largest: float, total_weight: float) -> Grid:
        """The grid for a floating tensor whose base has `base_largest` as its largest absolute value.

        `total_weight` is an upper bound of the sum of weights of the whole cohort. The sum of products is then at most
        total_weight * 2**limit_exponent, which is at most 2**62 grid units.
        """
        scale_exponent = _ceil_log2(max(base_largest, SCALE_FLOOR))
        limit_exponent = min(scale_exponent + HEADROOM_BITS, FORMATS[dtype].max_exponent)
        return cls(dtype, _ceil_log2(total_weight) + limit_exponent - SUM_BITS, limit_exponent)

    @property
    def limit(self) -> float:
        """Largest absolute value an update may have; infinity where the dtype itself ends earlier."""
        return math.ldexp(1.0, self.limit_exponent) if self.limit_exponent < 1024 else math.inf

    def multiplier(self, weight: float) -> float:
        """weight / 2**exponent, exactly: what a value is multiplied with before it is rounded."""
        return math.ldexp(weight, -self.exponent)

    def is_too_coarse(self, num_folded: int, sum_of_weights: float, largest: float) -> bool:
        """Whether the roundings may cost more than a quarter of the bound, so that the tensor must be refolded.

        Each rounding is off by half a grid unit at most, so the mean is off by num_folded * unit / (2 * sum) at most.
        A quarter, since half the bound belongs to the last rounding, to the dtype, and what float64 loses in between
        is far less than the other quarter. Exact rational arithmetic, so no machine decides otherwise. `largest` is the
        largest absolute value of any included update; all zeros are exact on every grid.
        """
        if largest == 0.0:
            return False
        quarter = Fraction(2) ** (FORMATS[self.dtype].bound_exponent(largest) - 2)
        return num_folded * Fraction(2) ** self.exponent > 2 * Fraction(sum_of_weights) * quarter


def _ceil_log2(value: float) -> int:
    mantissa, exponent = math.frexp(value)
    return exponent - 1 if mantissa == 0.5 else exponent
