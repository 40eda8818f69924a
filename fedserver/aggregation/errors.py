"""What can be wrong with an update, or with how the aggregation was called.

AggregationError
├── UpdateRefused          the update is unfit: quarantine it with `reason`, go on with the others
│   ├── SchemaMismatch     a tensor the schema does not have, or of another shape or dtype
│   ├── NotFinite          NaN or infinity
│   ├── BaseNotFinite      a change of a tensor that holds NaN or infinity in the base
│   ├── BeyondHeadroom     a value the round's grid cannot hold
│   └── ImplausibleExamples  `num_examples`, or the weight made of it, out of range
├── RankError              a rank that is not in the cohort, is in already, or is not in
├── NoUpdates              a mean of nothing was asked for
└── RereadNeeded           the result needs updates to be read again and nobody offered to
"""

from __future__ import annotations

import enum
from collections.abc import Sequence


class QuarantineReason(enum.Enum):
    """Why an update is kept out of the aggregate. The value is the word in tables, logs and reports."""

    SCHEMA = "schema"
    NOT_FINITE = "not_finite"
    HEADROOM = "headroom"
    NORM = "norm"
    NUM_EXAMPLES = "num_examples"
    STALE_ROUND = "stale_round"


class AggregationError(Exception):
    """Root of this package's errors."""


class UpdateRefused(AggregationError):
    """One update is unfit, and nothing has been changed by it. The message is for people.

    `rank` is whose it is, where several were given at once.
    """

    reason: QuarantineReason
    rank: int | None = None


class SchemaMismatch(UpdateRefused):
    """A tensor is unknown, or has another shape or dtype than the schema says."""

    reason = QuarantineReason.SCHEMA


class NotFinite(UpdateRefused):
    """A tensor holds NaN or infinity. `index` is that of the first such element, `()` for a scalar."""

    reason = QuarantineReason.NOT_FINITE

    def __init__(self, tensor: str, index: tuple[int, ...], value: float) -> None:
        super().__init__(
            f"tensor {tensor!r} holds {value} at index {list(index)}; every value must be finite. "
            "Look for a diverged training: a lower learning rate usually mends it"
        )
        self.tensor = tensor
        self.index = index
        self.value = value


class BaseNotFinite(UpdateRefused):
    """The update changes a tensor against whose values in the base nothing can be measured."""

    reason = QuarantineReason.NOT_FINITE

    def __init__(self, tensor: str, value: float) -> None:
        super().__init__(
            f"tensor {tensor!r} holds {value} in the base model and has to stay as it is there; the update changes it"
        )
        self.tensor = tensor


class BeyondHeadroom(UpdateRefused):
    """A value is too large for the round's grid. `value` is the tensor's largest absolute value."""

    reason = QuarantineReason.HEADROOM

    def __init__(self, tensor: str, value: float, limit: float) -> None:
        super().__init__(
            f"tensor {tensor!r} reaches {value:.6g} in absolute value; this round takes up to {limit:.6g}, "
            "65,536 times the base model's largest value there (or 1.0). Look for a diverged training"
        )
        self.tensor = tensor
        self.value = value
        self.limit = limit


class ImplausibleExamples(UpdateRefused):
    """`num_examples` is not positive, or more than the site's claim and the stated maximum allow."""

    reason = QuarantineReason.NUM_EXAMPLES


class RankError(AggregationError):
    """The rank is not in the cohort, or its update is in already (`fold`), or is not in (`remove`)."""


class NoUpdates(AggregationError):
    """There is no update to make a mean of."""

    def __init__(self) -> None:
        super().__init__("no update is in, so there is no mean; keep the base model")


class RereadNeeded(AggregationError):
    """Some tensors must be summed again from the updates themselves, and no `reread` was given."""

    def __init__(self, tensors: Sequence[str]) -> None:
        super().__init__(
            f"{len(tensors)} tensor(s) are too small for the grid, the first {tensors[0]!r}; "
            "pass `reread` to read them again from the committed updates"
        )
        self.tensors = tuple(tensors)
