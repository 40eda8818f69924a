"""The accumulator on chosen cases. About a second."""

from __future__ import annotations

import weakref
from collections import UserDict
from collections.abc import Mapping
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from fedserver.aggregation import (
    Accumulator,
    BaseNotFinite,
    BeyondHeadroom,
    ImplausibleExamples,
    NotFinite,
    NoUpdates,
    RankError,
    RereadNeeded,
    SchemaMismatch,
    check_update,
)
from fedstream.dtypes import DataType
from fedstream.schema import ModelSchema, TensorSpec
from tests.unit.fedserver.aggregation.oracle import bits, exact_mean, one_tensor, promised_bound, worst_error

MIXED = ModelSchema(
    (
        TensorSpec("kernel", DataType.FLOAT32, (2, 3)),
        TensorSpec("gain", DataType.FLOAT32, ()),
        TensorSpec("nothing", DataType.FLOAT32, (0, 5)),
        TensorSpec("steps", DataType.INT64, ()),
        TensorSpec("mask", DataType.BOOL, (3,)),
        TensorSpec("frozen", DataType.FLOAT32, (3,), trainable=False),
    )
)


def mixed_model(value: float, step: int = 7) -> dict[str, np.ndarray]:
    return {
        "kernel": np.full((2, 3), value, np.float32),
        "gain": np.array(2 * value, np.float32),
        "nothing": np.zeros((0, 5), np.float32),
        "steps": np.array(step),
        "mask": np.array([True, False, step > 7]),
        # A third has no exact float32, and -0.0 is not 0.0 byte for byte.
        "frozen": np.array([1 / 3, -0.0, 1e-42], np.float32),
    }


def accumulator_of(
    schema: ModelSchema, base: Mapping[str, np.ndarray], *limits: float, threads: int = 1
) -> Accumulator:
    return Accumulator(schema, base, dict(enumerate(limits)), threads=threads)


def test_mean_of_a_mixed_model_averages_floats_and_keeps_the_base_of_the_rest() -> None:
    base = mixed_model(0.0)
    accumulator = accumulator_of(MIXED, base, 3.0, 1.0)
    accumulator.fold(0, 3.0, mixed_model(1.0, step=8))
    accumulator.fold(1, 1.0, mixed_model(5.0, step=9))
    assert bits(accumulator.result()) == bits(base | {name: mixed_model(2.0)[name] for name in ("kernel", "gain")})
    assert accumulator.result()["gain"].shape == ()


def test_tensor_that_no_update_changed_is_the_base_s_own_array() -> None:
    base = mixed_model(0.0)
    accumulator = accumulator_of(MIXED, base, 1.0, 1.0)
    accumulator.fold(0, 1.0, mixed_model(1.0))
    accumulator.fold(1, 1.0, {"kernel": mixed_model(2.0)["kernel"]})
    result = accumulator.result()
    assert [name for name in base if result[name] is base[name]] == ["nothing", "steps", "mask", "frozen"]
    assert list(result) == [spec.name for spec in MIXED]


def test_tensors_changed_are_those_that_an_update_that_is_in_has_changed() -> None:
    accumulator = accumulator_of(MIXED, mixed_model(0.0), 1.0, 1.0)
    accumulator.fold(0, 1.0, mixed_model(0.0, step=9))
    assert accumulator.tensors_changed() == frozenset()
    accumulator.fold(1, 1.0, {"kernel": mixed_model(2.0)["kernel"], "gain": mixed_model(0.0)["gain"]})
    assert accumulator.tensors_changed() == {"kernel"}
    accumulator.remove(1, {"kernel": mixed_model(2.0)["kernel"]})
    assert accumulator.tensors_changed() == frozenset()


class Lent(UserDict[str, np.ndarray]):
    """Tensors made anew each time they are asked for; `most` of them were held at once."""

    def __init__(self, tensors: Mapping[str, np.ndarray], held: list[weakref.ref[np.ndarray]]) -> None:
        super().__init__(tensors)
        self._held, self.most = held, 0

    def __getitem__(self, name: str) -> np.ndarray:
        lent = self.data[name].copy()
        self._held.append(weakref.ref(lent))
        self.most = max(self.most, sum(ref() is not None for ref in self._held))
        return lent


@pytest.mark.parametrize("threads", [1, 2])
def test_tensors_are_asked_for_when_their_turn_comes_and_not_held(threads: int) -> None:
    """Base and update of one tensor for each thread, and one more of each while the next is asked for."""
    schema = ModelSchema(tuple(TensorSpec(f"t{i}", DataType.FLOAT32, (1 << 17,)) for i in range(24)))
    held: list[weakref.ref[np.ndarray]] = []
    base, update = (Lent({spec.name: np.full(spec.shape, x, np.float32) for spec in schema}, held) for x in (0, 1))
    accumulator = accumulator_of(schema, base, 1.0, 1.0, threads=threads)
    accumulator.fold(0, 1.0, update)
    accumulator.fold(1, 1.0, {})
    for _, values in accumulator.iter_result():
        assert values[0] == 0.5
    accumulator.remove(0, update)
    assert 0 < max(base.most, update.most) <= 4 * threads


def test_tensor_equal_to_the_base_counts_as_left_out() -> None:
    base = mixed_model(1.0)
    sent, left_out = (accumulator_of(MIXED, base, 1.0, 1.0) for _ in range(2))
    for accumulator in (sent, left_out):
        accumulator.fold(0, 1.0, mixed_model(1.1))
    sent.fold(1, 1.0, mixed_model(1.0))
    left_out.fold(1, 1.0, {})
    assert bits(sent.result()) == bits(left_out.result())


def test_update_that_left_a_tensor_unchanged_counts_with_the_base_s_values() -> None:
    base = mixed_model(1.0)
    accumulator = accumulator_of(MIXED, base, 1.0, 3.0)
    accumulator.fold(0, 1.0, {"gain": np.array(6.0, np.float32)})
    accumulator.fold(1, 3.0, {})
    assert accumulator.result()["gain"] == np.float32(3.0)


def test_share_of_the_base_does_not_depend_on_who_came_first() -> None:
    generator = np.random.default_rng(8)
    schema = one_tensor(DataType.FLOAT64, (1000,))
    base, changed = ({"kernel": generator.standard_normal(1000)} for _ in range(2))
    weights = generator.uniform(0.1, 10, 9).tolist()
    results = set()
    for order in (list(range(9)), [*reversed(range(9))], [4, 8, 1, 6, 0, 3, 7, 2, 5]):
        accumulator = accumulator_of(schema, base, *weights)
        for rank in order:
            accumulator.fold(rank, weights[rank], changed if rank == 4 else {})
        assert accumulator.tensors_to_reread() == ()
        results.add(accumulator.result()["kernel"].tobytes())
    assert len(results) == 1


def test_mean_divides_by_the_weights_that_are_in_not_by_the_cohort_s() -> None:
    accumulator = accumulator_of(MIXED, mixed_model(0.0), 1.0, 1.0, 1000.0)
    accumulator.fold(0, 1.0, mixed_model(1.0))
    accumulator.fold(1, 1.0, mixed_model(3.0))
    assert accumulator.result()["gain"] == np.float32(4.0)


def two_of(schema: ModelSchema, base: Mapping[str, np.ndarray]) -> Accumulator:
    accumulator = accumulator_of(schema, base, 2.0, 2.0, 2.0)
    accumulator.fold(0, 2.0, mixed_model(0.25))
    return accumulator


REFUSED: dict[str, tuple[dict[str, np.ndarray], float, type[Exception]]] = {
    "nan": ({"kernel": np.array([[0, 1, 2], [3, np.nan, np.nan]], np.float32)}, 2.0, NotFinite),
    "infinite": ({"gain": np.array(-np.inf, np.float32)}, 2.0, NotFinite),
    "beyond headroom": ({"kernel": np.full((2, 3), -65537, np.float32)}, 2.0, BeyondHeadroom),
    "unknown tensor": ({"kernal": np.zeros((2, 3), np.float32)}, 2.0, SchemaMismatch),
    "wrong shape": ({"kernel": np.zeros((3, 2), np.float32)}, 2.0, SchemaMismatch),
    "wrong dtype": ({"kernel": np.zeros((2, 3), np.float64)}, 2.0, SchemaMismatch),
    "big-endian": ({"kernel": np.zeros((2, 3), ">f4")}, 2.0, SchemaMismatch),
    "over the weight limit": (mixed_model(1.0), 2.1, ImplausibleExamples),
    "weight of zero": (mixed_model(1.0), 0.0, ImplausibleExamples),
    "weight that is NaN": (mixed_model(1.0), float("nan"), ImplausibleExamples),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused_update_changes_nothing(why: str) -> None:
    tensors, weight, error = REFUSED[why]
    base = mixed_model(0.0)
    accumulator = two_of(MIXED, base)
    before = bits(accumulator.result())
    # What is fit in the update comes first, and must not be in either.
    with pytest.raises(error):
        accumulator.fold(1, weight, {"gain": mixed_model(9.0)["gain"]} | tensors)
    assert accumulator.ranks == (0,)
    assert bits(accumulator.result()) == before
    accumulator.fold(1, 2.0, mixed_model(0.75))
    assert accumulator.result()["gain"] == np.float32(1.0)


def test_not_finite_names_tensor_index_and_value() -> None:
    with pytest.raises(NotFinite) as caught:
        two_of(MIXED, mixed_model(0.0)).fold(1, 1.0, REFUSED["nan"][0])
    assert (caught.value.tensor, caught.value.index, np.isnan(caught.value.value)) == ("kernel", (1, 1), True)


def test_headroom_is_65536_times_the_base_s_largest_value_inclusive() -> None:
    base = {"kernel": np.array([-4.0, 1.0], np.float32)}
    accumulator = accumulator_of(one_tensor(DataType.FLOAT32, (2,)), base, 1.0, 1.0)
    limit = 4.0 * 2**16
    accumulator.fold(0, 1.0, {"kernel": np.array([limit, 0], np.float32)})
    over = np.nextafter(np.float32(limit), np.float32(np.inf))
    with pytest.raises(BeyondHeadroom) as caught:
        accumulator.fold(1, 1.0, {"kernel": np.array([0, -over], np.float32)})
    assert (caught.value.tensor, caught.value.value, caught.value.limit) == ("kernel", float(over), limit)


def test_whole_cohort_at_the_limit_does_not_overflow() -> None:
    base = {"kernel": np.zeros(2, np.float32)}
    weights = [1.0, 0.1 / 1.1, 1e9, 3.0, 1e9 - 1]
    accumulator = accumulator_of(one_tensor(DataType.FLOAT32, (2,)), base, *weights)
    top = {"kernel": np.array([65536, -65536], np.float32)}
    for rank, weight in enumerate(weights):
        accumulator.fold(rank, weight, top)
    assert accumulator.result()["kernel"].tolist() == [65536.0, -65536.0]


@pytest.mark.parametrize("dtype", [DataType.FLOAT16, DataType.BFLOAT16, DataType.FLOAT32, DataType.FLOAT64])
def test_largest_value_of_a_type_stays_finite(dtype: DataType) -> None:
    top = np.full(3, ml_dtypes.finfo(dtype.numpy).max, dtype.numpy)  # type: ignore[no-untyped-call]
    accumulator = accumulator_of(one_tensor(dtype, (3,)), {"kernel": top}, 1.0, 0.1 / 1.1, 0.1 / 2.1)
    for rank, weight in ((0, 1.0), (1, 0.1 / 1.1)):
        accumulator.fold(rank, weight, {"kernel": np.array([top[0], -top[0], top[0]])})
    accumulator.fold(2, 0.1 / 2.1, {})
    result = accumulator.result()["kernel"]
    assert result[0] == result[2] == top[0]
    assert np.isfinite(result).all()


def test_values_too_small_for_the_grid_are_summed_again_from_the_updates_in_order_of_ranks() -> None:
    schema = ModelSchema((TensorSpec("kernel", DataType.FLOAT32, (4,)), TensorSpec("bias", DataType.FLOAT32, (4,))))
    base = {"kernel": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    generator = np.random.default_rng(5)
    updates = [
        {
            "kernel": generator.standard_normal(4).astype(np.float32),
            "bias": (generator.standard_normal(4) * 1e-30).astype(np.float32),
        }
        for _ in range(3)
    ]
    accumulator = accumulator_of(schema, base, 3.0, 5.0, 7.0)
    for rank in (2, 0, 1):
        accumulator.fold(rank, 3.0 + 2 * rank, updates[rank])
    assert accumulator.tensors_to_reread() == ("bias",)
    asked: list[tuple[int, str]] = []

    def reread(rank: int, name: str) -> np.ndarray:
        asked.append((rank, name))
        return updates[rank][name]

    result = accumulator.result(reread)
    assert asked == [(0, "bias"), (1, "bias"), (2, "bias")]
    biases = [update["bias"] for update in updates]
    exact = exact_mean([Fraction(3), Fraction(5), Fraction(7)], biases)
    assert worst_error(result["bias"], exact) <= promised_bound(DataType.FLOAT32, biases)
    with pytest.raises(RereadNeeded, match="'bias'"):
        accumulator.result()


def test_denormals_keep_their_mean() -> None:
    base = {"kernel": np.ones(2, np.float32)}
    tiny = np.float32(1e-45)  # the smallest there is
    updates = [np.array([2 * tiny, tiny]), np.array([4 * tiny, -tiny])]
    accumulator = accumulator_of(one_tensor(DataType.FLOAT32, (2,)), base, 1.0, 1.0)
    for rank, values in enumerate(updates):
        accumulator.fold(rank, 1.0, {"kernel": values})
    assert accumulator.result(lambda rank, name: updates[rank])["kernel"].tolist() == [3 * float(tiny), 0.0]


@pytest.mark.parametrize("dtype", [DataType.FLOAT16, DataType.BFLOAT16, DataType.FLOAT32, DataType.FLOAT64])
def test_threads_on_tensors_of_many_spans_give_the_same_bits_as_one(dtype: DataType) -> None:
    schema = ModelSchema((TensorSpec("large", dtype, (1500, 1500)), TensorSpec("small", dtype, (17,))))
    generator = np.random.default_rng(3)
    base, *updates = (
        {spec.name: generator.standard_normal(spec.shape).astype(dtype.numpy) for spec in schema} for _ in range(4)
    )
    results = []
    for threads in (1, 3):
        accumulator = accumulator_of(schema, base, 1.0, 2.0, 3.0, threads=threads)
        for rank, update in enumerate(updates):
            accumulator.fold(rank, 1.0 + rank, update)
        accumulator.remove(1, updates[1])
        results.append(bits(accumulator.result(lambda rank, name: updates[rank][name])))
    assert results[0] == results[1]


def test_views_that_are_read_only_and_unaligned_or_not_contiguous_fold_like_their_copies() -> None:
    schema = one_tensor(DataType.FLOAT32, (30, 40))
    values = np.random.default_rng(4).standard_normal((30, 40)).astype(np.float32)
    unaligned = np.frombuffer(b"\0" + values.tobytes(), np.float32, 1200, offset=1).reshape(30, 40)
    fortran = np.asfortranarray(values)
    assert not unaligned.flags.writeable
    assert not unaligned.flags.aligned
    results = []
    for update in (values, unaligned, fortran):
        accumulator = accumulator_of(schema, {"kernel": np.zeros((30, 40), np.float32)}, 3.0)
        accumulator.fold(0, 3.0, {"kernel": update})
        results.append(bits(accumulator.result()))
    assert results == [bits({"kernel": values})] * 3


def test_sums_are_allocated_for_changed_tensors_only_and_dropped_with_the_last_update() -> None:
    accumulator = accumulator_of(MIXED, mixed_model(0.0), 1.0, 1.0)
    update = {"kernel": mixed_model(1.0)["kernel"]}
    assert accumulator.sum_bytes == 0
    accumulator.fold(0, 1.0, update)
    accumulator.fold(1, 1.0, update)
    assert accumulator.sum_bytes == 6 * 8
    accumulator.remove(1, update)
    assert accumulator.sum_bytes == 6 * 8
    accumulator.remove(0, update)
    assert accumulator.sum_bytes == 0


def test_facts_found_before_are_used_instead_of_a_second_look() -> None:
    base, update = mixed_model(0.0), mixed_model(1.0)
    one, other = (accumulator_of(MIXED, base, 1.0) for _ in range(2))
    one.fold(0, 1.0, update, check_update(MIXED, base, update))
    other.fold(0, 1.0, update)
    assert bits(one.result()) == bits(other.result())


def test_ranks_are_held_to_the_cohort() -> None:
    accumulator = two_of(MIXED, mixed_model(0.0))
    with pytest.raises(RankError, match="rank 3 is not in this round's cohort of 3"):
        accumulator.fold(3, 1.0, {})
    with pytest.raises(RankError, match="rank 0 is in already"):
        accumulator.fold(0, 1.0, {})
    with pytest.raises(RankError, match="rank 1 is not in; in are \\[0\\]"):
        accumulator.remove(1, {})


def test_removal_without_a_tensor_that_was_folded_is_refused_and_changes_nothing() -> None:
    accumulator = two_of(MIXED, mixed_model(0.0))
    before, update = bits(accumulator.result()), mixed_model(2.0)
    accumulator.fold(1, 1.0, update)
    with pytest.raises(KeyError, match="gain"):
        accumulator.remove(1, {"kernel": update["kernel"]})
    accumulator.remove(1, update)
    assert bits(accumulator.result()) == before


def test_result_without_updates_is_refused() -> None:
    with pytest.raises(NoUpdates):
        accumulator_of(MIXED, mixed_model(0.0), 1.0).result()


@pytest.mark.parametrize("limits", [[], [0.0], [-1.0], [float("nan")], [float("inf")], [1e12], [1e-31]])
def test_weight_limits_out_of_range_are_refused(limits: list[float]) -> None:
    with pytest.raises(ValueError, match="rank"):
        accumulator_of(MIXED, mixed_model(0.0), *limits)


def test_change_of_a_base_that_is_not_finite_is_refused_by_name() -> None:
    accumulator = accumulator_of(MIXED, mixed_model(float("nan")), 1.0)
    with pytest.raises(BaseNotFinite, match="tensor 'kernel' holds nan in the base model"):
        accumulator.fold(0, 1.0, {"kernel": mixed_model(0.0)["kernel"]})
