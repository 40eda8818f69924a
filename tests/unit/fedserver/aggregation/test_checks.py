"""Which updates are fit. A moment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedserver.aggregation import (
    STRATEGIES,
    ExampleLimits,
    ImplausibleExamples,
    NotFinite,
    QuarantineReason,
    SchemaMismatch,
    Surveyed,
    check_cohort,
    check_num_examples,
    check_update,
    weight_limits,
)
from fedstream.dtypes import DataType
from fedstream.schema import ModelSchema, TensorSpec
from tests.unit.fedserver.aggregation.oracle import one_tensor

FLOATING = [dtype for dtype in DataType if dtype.is_floating]
SCHEMA = ModelSchema(
    (
        TensorSpec("kernel", DataType.FLOAT32, (2, 2)),
        TensorSpec("bias", DataType.FLOAT16, (2,)),
        TensorSpec("count", DataType.INT32, (1,)),
    )
)
BASE: dict[str, np.ndarray] = {
    "kernel": np.zeros((2, 2), np.float32),
    "bias": np.ones(2, np.float16),
    "count": np.zeros(1, np.int32),
}


def test_update_gives_largest_of_what_differs_and_the_length_of_the_pseudo_gradient() -> None:
    tensors = BASE | {"kernel": np.array([[0, -3], [0, 0]], np.float32), "count": np.array([9], np.int32)}
    assert check_update(SCHEMA, BASE, tensors) == Surveyed({"kernel": 3.0}, 3.0)
    both = {"kernel": tensors["kernel"], "bias": np.array([1, 5], np.float16)}
    assert check_update(SCHEMA, BASE, both) == Surveyed({"kernel": 3.0, "bias": 5.0}, 5.0)


def test_update_without_a_change_has_no_length() -> None:
    assert check_update(SCHEMA, BASE, {}) == check_update(SCHEMA, BASE, BASE) == Surveyed({}, 0.0)


def test_negative_zero_differs_from_zero_as_its_digest_does() -> None:
    assert check_update(SCHEMA, BASE, {"kernel": -BASE["kernel"]}) == Surveyed({"kernel": 0.0}, 0.0)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("threads", [1, 2])
def test_length_is_the_l2_norm_over_many_blocks(dtype: DataType, threads: int) -> None:
    generator = np.random.default_rng(1)
    schema = one_tensor(dtype, (1_200_001,))
    base, trained = (generator.standard_normal(1_200_001).astype(dtype.numpy) for _ in range(2))
    trained[:100_000] = base[:100_000]
    facts = check_update(schema, {"kernel": base}, {"kernel": trained}, threads=threads)
    wide = trained.astype(np.float64)
    assert facts.norm == pytest.approx(np.linalg.norm(wide - base.astype(np.float64)), rel=1e-6)
    assert facts.largest == {"kernel": float(np.abs(wide).max())}


def test_length_does_not_depend_on_threads() -> None:
    generator = np.random.default_rng(2)
    schema = one_tensor(DataType.FLOAT32, (3_000_000,))
    base, trained = (generator.standard_normal(3_000_000).astype(np.float32) for _ in range(2))
    norms = {check_update(schema, {"kernel": base}, {"kernel": trained}, threads=n).norm for n in (1, 2, 3)}
    assert len(norms) == 1


def test_length_that_overflows_is_infinite() -> None:
    schema = one_tensor(DataType.FLOAT64, (2,))
    facts = check_update(schema, {"kernel": np.zeros(2)}, {"kernel": np.full(2, 1e200)})
    assert facts == Surveyed({"kernel": 1e200}, np.inf)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("place", [0, 65_535, 65_536, 99_999])
def test_value_that_is_not_finite_is_named_wherever_it_stands(dtype: DataType, place: int, bad: float) -> None:
    values = np.ones((10, 10_000), dtype.numpy)
    values.reshape(-1)[place:] = bad
    with pytest.raises(NotFinite) as caught:
        check_update(one_tensor(dtype, values.shape), {"kernel": np.zeros_like(values)}, {"kernel": values})
    assert (caught.value.tensor, caught.value.index) == ("kernel", divmod(place, 10_000))
    assert caught.value.reason is QuarantineReason.NOT_FINITE


def test_first_tensor_in_schema_order_is_named() -> None:
    tensors = {"bias": np.array([1, np.nan], np.float16), "kernel": np.array([[0, 0], [np.inf, 0]], np.float32)}
    with pytest.raises(NotFinite, match=r"'kernel' holds inf at index \[1, 0\]"):
        check_update(SCHEMA, BASE, tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"extra": np.zeros(1)}, "tensor 'extra' is not in the federation's schema of 3 tensors"),
        ({"bias": np.zeros(3, np.float16)}, r"tensor 'bias' is float16 \(3,\); the federation's is float16 \(2,\)"),
        ({"bias": np.zeros(2, np.float32)}, r"tensor 'bias' is float32 \(2,\); the federation's is float16 \(2,\)"),
        ({"count": np.zeros(1, np.int64)}, r"tensor 'count' is int64 \(1,\); the federation's is int32 \(1,\)"),
    ],
)
def test_tensor_that_does_not_fit_the_schema_is_named(tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(SchemaMismatch, match=message) as caught:
        check_update(SCHEMA, BASE, tensors)
    assert caught.value.reason is QuarantineReason.SCHEMA


@pytest.mark.parametrize(("num_examples", "claimed"), [(1, 1), (200, 100), (3, 1.5), (10_000_000, 9_999_999)])
def test_plausible_examples_pass(num_examples: int, claimed: int) -> None:
    check_num_examples(num_examples, claimed, ExampleLimits())


@pytest.mark.parametrize(
    ("num_examples", "claimed"), [(0, 100), (-5, 100), (201, 100), (1, 0), (10**9, 100), (10_000_001, 10**9)]
)
def test_implausible_examples_are_refused(num_examples: int, claimed: int) -> None:
    with pytest.raises(ImplausibleExamples, match="trained on") as caught:
        check_num_examples(num_examples, claimed, ExampleLimits())
    assert caught.value.reason is QuarantineReason.NUM_EXAMPLES


def test_weight_limits_are_what_the_most_plausible_examples_weigh() -> None:
    claimed = {0: 100, 2: 30_000_000}
    limits = ExampleLimits(growth=1.5, maximum=1000)
    assert weight_limits(STRATEGIES["fedavg"], claimed, limits) == {0: 150.0, 2: 1000.0}
    assert weight_limits(STRATEGIES["uniform"], claimed, limits) == {0: 1.0, 2: 1.0}
    assert weight_limits(STRATEGIES["rank_decay"], claimed, limits) == {0: 1.0, 2: 0.1 / 2.1}
    with pytest.raises(ImplausibleExamples, match="rank 3 claimed 0 examples"):
        weight_limits(STRATEGIES["fedavg"], {3: 0}, limits)


def test_one_absurd_update_among_three_is_found_in_every_order() -> None:
    norms = {0: 1.0, 1: 1.5, 2: 1e6}
    verdicts = [check_cohort(dict(order)) for order in itertools.permutations(norms.items())]
    assert all(verdict == verdicts[0] for verdict in verdicts)
    assert {rank: quarantine.reason for rank, quarantine in verdicts[0].items()} == {2: QuarantineReason.NORM}
    assert "1e+06, 6.667e+05 times the median 1.5 of the 3 updates" in verdicts[0][2].message


@pytest.mark.parametrize(
    "norms",
    [
        {},
        {0: 1.0, 1: 1e6},
        {0: 1.0, 1: 1.0, 2: 100.0},
        {0: 0.0, 1: 0.0, 2: 5.0, 3: 0.0},
        {0: 0.0, 1: 1.0, 2: 1e6},
    ],
)
def test_cohort_without_grounds_for_a_verdict_is_left_alone(norms: dict[int, float]) -> None:
    assert check_cohort(norms) == {}


def test_infinite_length_is_absurd_in_any_company() -> None:
    assert list(check_cohort({0: np.inf})) == [0]
    assert list(check_cohort({0: np.inf, 1: 1.0, 2: np.inf})) == [0, 2]
