"""From updates to the next global model: which updates are fit, what each weighs, and their exact weighted mean.

Nothing here knows grpc, the disk or the clock. The parts, from the outside in: `offline` (a whole aggregate at once),
`accumulator` (one round, update by update), `checks` and `survey` (fit or not), `strategies` (weights), `grid` (how
fine, and when that is not enough), `kernels` and `blocks` (the loops), `errors`.
"""

from fedserver.aggregation.accumulator import Accumulator, Reread
from fedserver.aggregation.checks import (
    ExampleLimits,
    Quarantine,
    check_cohort,
    check_num_examples,
    check_update,
    weight_limits,
)
from fedserver.aggregation.errors import (
    AggregationError,
    BaseNotFinite,
    BeyondHeadroom,
    ImplausibleExamples,
    NotFinite,
    NoUpdates,
    QuarantineReason,
    RankError,
    RereadNeeded,
    SchemaMismatch,
    UpdateRefused,
)
from fedserver.aggregation.offline import aggregate_all
from fedserver.aggregation.strategies import STRATEGIES, Strategy, strategy_named
from fedserver.aggregation.survey import Look, Survey, Surveyed, largest_absolute

__all__ = [
    "STRATEGIES",
    "Accumulator",
    "AggregationError",
    "BaseNotFinite",
    "BeyondHeadroom",
    "ExampleLimits",
    "ImplausibleExamples",
    "Look",
    "NoUpdates",
    "NotFinite",
    "Quarantine",
    "QuarantineReason",
    "RankError",
    "Reread",
    "RereadNeeded",
    "SchemaMismatch",
    "Strategy",
    "Survey",
    "Surveyed",
    "UpdateRefused",
    "aggregate_all",
    "check_cohort",
    "check_num_examples",
    "check_update",
    "largest_absolute",
    "strategy_named",
    "weight_limits",
]
