"""The laws of the accumulator, on adversarial input: within the stated bound of the exact mean, whatever the values and
weights; the same bits whatever the order, the removals in between, the threads and the block size. About 7 seconds."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedserver.aggregation import STRATEGIES, Accumulator, aggregate_all
from fedstream.dtypes import DataType
from fedstream.schema import ModelSchema, TensorSpec
from tests.unit.fedserver.aggregation.oracle import bits, exact_mean, promised_bound, worst_error

FLOATING = [dtype for dtype in DataType if dtype.is_floating]


@dataclasses.dataclass(frozen=True)
class Case:
    """One tensor of each floating type; `None` in an update stands for unchanged."""

    schema: ModelSchema
    base: dict[str, np.ndarray]
    weights: tuple[float, ...]
    spare_weight: float
    """Of a cohort member whose update never came: it is in the limits, and not in the sum."""
    updates: tuple[dict[str, np.ndarray], ...]

    @property
    def limits(self) -> dict[int, float]:
        return dict(enumerate((*self.weights, self.spare_weight)))

    def accumulator(self, threads: int = 1, block_elements: int = 64) -> Accumulator:
        return Accumulator(self.schema, self.base, self.limits, threads=threads, block_elements=block_elements)

    def fold(self, accumulator: Accumulator, rank: int) -> None:
        accumulator.fold(rank, self.weights[rank], self.updates[rank])

    def reread(self, rank: int, name: str) -> np.ndarray:
        return self.updates[rank][name]

    def values(self, name: str) -> list[np.ndarray]:
        return [update.get(name, self.base[name]) for update in self.updates]


def values(draw: st.DrawFn, spec: TensorSpec, limit: float) -> np.ndarray:
    """Any finite values up to `limit`, most of them near one power of two: from denormals to the end of the type."""
    top = float(np.finfo(np.float32).max) if spec.dtype is DataType.BFLOAT16 else float(np.finfo(spec.dtype.numpy).max)
    limit = min(limit, top / 2 if spec.dtype is DataType.BFLOAT16 else top)
    lowest = {DataType.FLOAT16: -26, DataType.FLOAT64: -1080}.get(spec.dtype, -155)
    scale = draw(st.integers(lowest, int(np.log2(limit))))
    near = st.floats(-1, 1).map(lambda mantissa: float(np.ldexp(mantissa, scale)))
    element = st.one_of(near, near, near, st.just(0.0), st.floats(-limit, limit))
    drawn = draw(st.lists(element, min_size=spec.num_elements, max_size=spec.num_elements))
    return np.clip(np.array(drawn), -limit, limit).astype(spec.dtype.numpy).reshape(spec.shape)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few values, any of them: what hypothesis finds worst."""
    schema = ModelSchema(tuple(TensorSpec(dtype.name, dtype, (3,)) for dtype in FLOATING))
    base = {spec.name: values(draw, spec, np.inf) for spec in schema}
    weight = st.one_of(st.integers(1, 2000).map(float), st.floats(1e-9, 1e9))
    weights = tuple(draw(st.lists(weight, min_size=1, max_size=5)))
    updates = tuple(
        {
            spec.name: values(draw, spec, max(1.0, float(np.abs(base[spec.name].astype(np.float64)).max())) * 2.0**16)
            for spec in schema
            if draw(st.integers(0, 3))
        }
        for _ in weights
    )
    return Case(schema, base, weights, draw(weight), updates)


@st.composite
def random_cases(draw: st.DrawFn) -> Case:
    """Larger tensors whose values have all their digits, so that one addition done in another order shows."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(0, 70))
    schema = ModelSchema(tuple(TensorSpec(dtype.name, dtype, (size,)) for dtype in FLOATING))
    num_updates = draw(st.integers(1, 6))

    def model() -> dict[str, np.ndarray]:
        lowest = {DataType.FLOAT16: -6}
        scales = {spec.name: draw(st.integers(lowest.get(spec.dtype, -50), 4)) for spec in schema}
        return {
            spec.name: (generator.standard_normal(size) * 10.0 ** scales[spec.name])
            .clip(-60_000, 60_000)
            .astype(spec.dtype.numpy)
            for spec in schema
        }

    base = model()
    updates = [
        {name: values for name, values in model().items() if draw(st.integers(0, 3))} for _ in range(num_updates)
    ]
    weights = generator.uniform(0.1, 100, num_updates + 1).tolist()
    return Case(schema, base, tuple(weights[1:]), weights[0], tuple(updates))


@settings(max_examples=300, deadline=None)
@given(st.one_of(cases(), random_cases()))
def test_result_of_any_updates_is_within_the_bound_of_the_exact_mean(case: Case) -> None:
    accumulator = case.accumulator()
    for rank in range(len(case.updates)):
        case.fold(accumulator, rank)
    result = accumulator.result(case.reread)
    weights = [Fraction(weight) for weight in case.weights]
    for spec in case.schema:
        arrays = case.values(spec.name)
        error = worst_error(result[spec.name], exact_mean(weights, arrays))
        assert error <= promised_bound(spec.dtype, arrays), spec.name


@settings(max_examples=150, deadline=None)
@given(random_cases(), st.data())
def test_result_has_the_same_bits_for_every_order_removal_thread_count_and_block_size(
    case: Case, data: st.DataObject
) -> None:
    plain = case.accumulator()
    ranks = range(len(case.updates))
    for rank in ranks:
        case.fold(plain, rank)
    other = case.accumulator(threads=data.draw(st.integers(1, 3)), block_elements=data.draw(st.integers(1, 4)))
    for rank in data.draw(st.permutations(ranks)):
        case.fold(other, rank)
        # Any update that is in may leave, and come back at the end.
        leaves = data.draw(st.sampled_from([None, *other.ranks]))
        if leaves is not None:
            other.remove(leaves, case.updates[leaves])
    for rank in data.draw(st.permutations(sorted(set(ranks) - set(other.ranks)))):
        case.fold(other, rank)
    assert other.tensors_to_reread() == plain.tensors_to_reread()
    assert bits(other.result(case.reread)) == bits(plain.result(case.reread))


@settings(max_examples=100, deadline=None)
@given(random_cases(), st.data())
def test_removed_update_leaves_no_trace(case: Case, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(range(len(case.updates))), max_size=len(case.updates) - 1))
    with_removal, without = case.accumulator(), case.accumulator()
    for rank in range(len(case.updates)):
        case.fold(with_removal, rank)
    for rank in gone:
        with_removal.remove(rank, case.updates[rank])
    for rank in sorted(set(range(len(case.updates))) - gone, reverse=True):
        case.fold(without, rank)
    assert bits(with_removal.result(case.reread)) == bits(without.result(case.reread))


@settings(max_examples=200, deadline=None)
@given(st.integers(-40, -4), st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0, 6))
def test_result_around_the_resolution_of_the_grid_is_within_the_bound(
    exponent: int, num_updates: int, seed: int, spread: float
) -> None:
    """Values from where the grid is ample to where it is useless, weights up to 10**spread apart."""
    generator = np.random.default_rng(seed)
    schema = ModelSchema((TensorSpec("bias", DataType.FLOAT32, (64,)),))
    base = {"bias": np.zeros(64, np.float32)}
    arrays = [np.ldexp(generator.uniform(0.5, 1, 64), exponent).astype(np.float32) for _ in range(num_updates)]
    weights = (10 ** generator.uniform(0, spread, num_updates)).tolist()
    accumulator = Accumulator(schema, base, dict(enumerate(weights)))
    for rank, weight in enumerate(weights):
        accumulator.fold(rank, weight, {"bias": arrays[rank]})
    result = accumulator.result(lambda rank, name: arrays[rank])["bias"]
    exact = exact_mean([Fraction(weight) for weight in weights], arrays)
    assert worst_error(result, exact) <= promised_bound(DataType.FLOAT32, arrays)


def formula(strategy: str, rank: int, num_examples: int) -> Fraction:
    """The weights as the formulas say, in rational numbers: 0.1 is a tenth here."""
    return {
        "fedavg": Fraction(num_examples),
        "uniform": Fraction(1),
        "rank_decay": Fraction(1, 10) / (rank + Fraction(1, 10)),
    }[strategy]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(STRATEGIES)),
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10_000)), min_size=1, max_size=8, unique_by=lambda u: u[0]),
    st.floats(-30, 3),
)
def test_strategies_agree_with_their_formulas_on_random_models(
    strategy: str, seed: int, members: list[tuple[int, int]], magnitude: float
) -> None:
    generator = np.random.default_rng(seed)
    schema = ModelSchema((TensorSpec("kernel", DataType.FLOAT32, (4, 5)), TensorSpec("bias", DataType.FLOAT32, ())))
    models = [
        {spec.name: np.asarray(generator.standard_normal(spec.shape) * 10.0**magnitude, np.float32) for spec in schema}
        for _ in range(len(members) + 1)
    ]
    base, *trained = models
    updates = [(rank, examples, model) for (rank, examples), model in zip(members, trained, strict=True)]
    result = aggregate_all(schema, base, updates, STRATEGIES[strategy])
    weights = [formula(strategy, rank, examples) for rank, examples in members]
    for spec in schema:
        arrays = [model[spec.name] for model in trained]
        bound = promised_bound(spec.dtype, arrays)
        assert worst_error(result[spec.name], exact_mean(weights, arrays)) <= bound
