"""How fast updates are checked and folded: `python -m benchmarks.bench_fold [--mib 100] [--threads 1 2]`.

Speeds are GB of float32 a second, best of several runs; each array is larger than the caches. `plain float64` is the
floor: the same weighted sum in blocks, without checks or exactness.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from fedserver.aggregation import Accumulator, check_update
from fedserver.aggregation.blocks import BLOCK_ELEMENTS
from fedstream.dtypes import DataType
from fedstream.schema import ModelSchema, TensorSpec

NUM_TENSORS = 64
NUM_UPDATES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=100, help="size of the model in MiB (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default: 1 2)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, of which the best counts")
    options = parser.parse_args()
    schema = model_schema(options.mib)
    print(f"{options.mib} MiB of float32 in {NUM_TENSORS} tensors; GB/s, best of {options.repeats}")
    for threads in options.threads:
        for step, gigabytes_per_second in speeds(schema, threads, options.repeats).items():
            print(f"  {threads} thread(s)  {step:28} {gigabytes_per_second:6.2f}")


def model_schema(mib: int) -> ModelSchema:
    elements = mib * 2**20 // 4 // NUM_TENSORS
    return ModelSchema(tuple(TensorSpec(f"tensor_{i}", DataType.FLOAT32, (elements,)) for i in range(NUM_TENSORS)))


def model(schema: ModelSchema, seed: int, scale: float = 0.05) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {spec.name: generator.standard_normal(spec.shape, np.float32) * np.float32(scale) for spec in schema}


def speeds(schema: ModelSchema, threads: int, repeats: int) -> dict[str, float]:
    """Step to GB/s of one model's bytes."""
    base, *updates = (model(schema, seed) for seed in range(NUM_UPDATES + 1))
    limits = dict.fromkeys(range(NUM_UPDATES + 1), 1000.0)
    accumulator = Accumulator(schema, base, limits, threads=threads)
    for rank, update in enumerate(updates):
        accumulator.fold(rank, 100.0 + rank, update)
    update, last = updates[-1], NUM_UPDATES - 1
    facts = check_update(schema, base, update, threads=threads)

    def fold_again() -> None:
        accumulator.remove(last, update)
        accumulator.fold(last, 123.0, update, facts)

    def mean() -> None:
        for _ in accumulator.iter_result():
            pass

    plain = zeros(schema)
    found = {
        "plain float64": measure(schema, repeats, lambda: plain_fold(update, plain)),
        "check (finite, largest, norm)": measure(
            schema, repeats, lambda: check_update(schema, base, update, threads=threads)
        ),
        "check, equal to the base": measure(schema, repeats, lambda: check_update(schema, base, base, threads=threads)),
        "fold or remove": 2 * measure(schema, repeats, fold_again),
        "mean": measure(schema, repeats, mean),
    }
    tiny = [model(schema, seed, scale=1e-9) for seed in range(2)]
    refolding = Accumulator(schema, {name: np.zeros_like(x) for name, x in base.items()}, limits, threads=threads)
    for rank, values in enumerate(tiny):
        refolding.fold(rank, 100.0, values)
    found["refold, per update"] = 2 * measure(schema, 1, lambda: refolding.result(lambda rank, name: tiny[rank][name]))
    return found


def zeros(schema: ModelSchema) -> dict[str, np.ndarray]:
    return {spec.name: np.zeros(spec.shape) for spec in schema}


def plain_fold(update: dict[str, np.ndarray], total: dict[str, np.ndarray]) -> None:
    """total += 100 * update, on one thread."""
    buffer = np.empty(BLOCK_ELEMENTS)
    for name, values in update.items():
        for start in range(0, values.size, BLOCK_ELEMENTS):
            part = total[name][start : start + BLOCK_ELEMENTS]
            product = buffer[: part.size]
            np.copyto(product, values[start : start + BLOCK_ELEMENTS])
            np.multiply(product, 100.0, out=product)
            np.add(part, product, out=part)


def measure(schema: ModelSchema, repeats: int, work: Callable[[], object]) -> float:
    """GB/s of one model's bytes, the best run."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return schema.size_bytes / best / 1e9


if __name__ == "__main__":
    main()
