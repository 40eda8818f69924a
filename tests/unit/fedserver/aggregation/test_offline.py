"""The aggregate of updates that are all at hand. A moment."""

from __future__ import annotations

import numpy as np
import pytest

from fedserver.aggregation import (
    STRATEGIES,
    Accumulator,
    ExampleLimits,
    NotFinite,
    NoUpdates,
    RankError,
    SchemaMismatch,
    Strategy,
    aggregate_all,
    weight_limits,
)
from fedstream.dtypes import DataType
from fedstream.schema import ModelSchema, TensorSpec
from tests.unit.fedserver.aggregation.oracle import bits

SCHEMA = ModelSchema(
    (
        TensorSpec("frozen", DataType.FLOAT32, (50,), trainable=False),
        TensorSpec("kernel", DataType.FLOAT32, (50,)),
        TensorSpec("bias", DataType.FLOAT32, (5,)),
        TensorSpec("steps", DataType.INT32, ()),
    )
)
EXAMPLES = [40, 12, 77]


def models(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Equal in `frozen`; `bias` is small enough to be summed again."""
    generator = np.random.default_rng(seed)
    frozen = generator.standard_normal(50).astype(np.float32)
    return [
        {
            "frozen": frozen.copy(),
            "kernel": generator.standard_normal(50).astype(np.float32),
            "bias": (generator.standard_normal(5) * 1e-12).astype(np.float32),
            "steps": np.array(number, np.int32),
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=list(STRATEGIES))
def test_aggregate_with_a_base_has_the_bits_of_a_federation(strategy: Strategy) -> None:
    base, *trained = models(4)
    limits = weight_limits(strategy, dict(enumerate(EXAMPLES)), ExampleLimits())
    federation = Accumulator(SCHEMA, base, limits)
    for rank in (1, 2, 0):
        changed = {name: values for name, values in trained[rank].items() if name != "frozen"}
        federation.fold(rank, strategy.weight(rank, EXAMPLES[rank]), changed)
    updates = [(rank, EXAMPLES[rank], trained[rank]) for rank in (2, 0, 1)]
    offline = aggregate_all(SCHEMA, base, updates, strategy)
    assert bits(offline) == bits(federation.result(lambda rank, name: trained[rank][name]))
    assert federation.tensors_to_reread() == ("bias",)


def test_aggregate_of_a_round_with_a_drop_out_needs_the_limits_of_its_cohort() -> None:
    base, *trained = models(4)
    strategy = STRATEGIES["fedavg"]
    limits = weight_limits(strategy, dict(enumerate([*EXAMPLES, 1_000_000])), ExampleLimits())
    federation = Accumulator(SCHEMA, base, limits)
    for rank, examples in enumerate(EXAMPLES):
        federation.fold(rank, float(examples), trained[rank])
    updates = [(rank, examples, trained[rank]) for rank, examples in enumerate(EXAMPLES)]
    offline = aggregate_all(SCHEMA, base, updates, strategy, limits=limits)
    assert bits(offline) == bits(federation.result(lambda rank, name: trained[rank][name]))


def test_aggregate_without_a_base_takes_the_lowest_rank_for_it() -> None:
    trained = models(3)
    updates = [(rank, EXAMPLES[rank], trained[rank]) for rank in (2, 0, 1)]
    strategy = STRATEGIES["fedavg"]
    result = aggregate_all(SCHEMA, None, updates, strategy)
    assert bits(result) == bits(aggregate_all(SCHEMA, trained[0], updates, strategy))
    assert result["frozen"].tobytes() == trained[0]["frozen"].tobytes()
    assert result["steps"] == 0
    weights = np.array(EXAMPLES, np.float64)
    expected = weights @ np.array([model["kernel"].astype(np.float64) for model in trained]) / weights.sum()
    largest = max(float(np.abs(model["kernel"]).max()) for model in trained)
    np.testing.assert_allclose(result["kernel"], expected, rtol=0, atol=float(np.spacing(np.float32(largest))))


def test_one_model_alone_comes_back_bit_for_bit() -> None:
    (model,) = models(1)
    assert bits(aggregate_all(SCHEMA, None, [(0, 5, model)], STRATEGIES["fedavg"])) == bits(model)


def test_incomplete_first_model_without_a_base_is_refused() -> None:
    (model,) = models(1)
    del model["bias"]
    with pytest.raises(SchemaMismatch, match="lacks 1 of 4 tensors, such as 'bias'"):
        aggregate_all(SCHEMA, None, [(0, 5, model)], STRATEGIES["fedavg"])


def test_unfit_update_is_an_error_not_left_out() -> None:
    one, other = models(2)
    other["kernel"][3] = np.nan
    with pytest.raises(NotFinite):
        aggregate_all(SCHEMA, None, [(0, 5, one), (1, 5, other)], STRATEGIES["fedavg"])


def test_no_updates_and_equal_ranks_are_refused() -> None:
    one, other = models(2)
    with pytest.raises(NoUpdates):
        aggregate_all(SCHEMA, one, [], STRATEGIES["fedavg"])
    with pytest.raises(RankError):
        aggregate_all(SCHEMA, None, [(1, 5, one), (1, 5, other)], STRATEGIES["fedavg"])


@pytest.mark.parametrize("with_base", [True, False])
def test_frozen_tensor_that_is_not_finite_passes_through_and_no_other_does(with_base: bool) -> None:
    base, *trained = models(3)
    for each in (base, *trained):
        each["frozen"][7] = -np.inf
    updates = [(rank, EXAMPLES[rank], one) for rank, one in enumerate(trained)]
    made = aggregate_all(SCHEMA, base if with_base else None, updates, STRATEGIES["fedavg"])
    assert made["frozen"].tobytes() == base["frozen"].tobytes()
    for name in ("kernel", "frozen"):
        kept = trained[1][name].copy()
        trained[1][name][3] = np.nan
        with pytest.raises(NotFinite, match=name) as refused:
            aggregate_all(SCHEMA, base if with_base else None, updates, STRATEGIES["fedavg"])
        assert refused.value.rank == 1
        trained[1][name][:] = kept
    for one in (base, *trained):
        one["kernel"][3] = np.nan
    with pytest.raises(NotFinite, match="kernel"):
        aggregate_all(SCHEMA, base if with_base else None, updates, STRATEGIES["fedavg"])
