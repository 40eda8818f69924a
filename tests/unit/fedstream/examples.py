"""Small models with everything that is awkward: every element type, a scalar, an empty axis, names in any script."""

from __future__ import annotations

import numpy as np

from fedstream.dtypes import DataType
from fedstream.manifest import Digest, TensorEntry
from fedstream.schema import ModelSchema, TensorRole, TensorSpec

AWKWARD = ModelSchema(
    (
        TensorSpec("odd", DataType.INT8, (3,)),  # what follows starts at an odd offset in a file
        *(TensorSpec(f"every/{dtype.name.lower()}", dtype, (2, 3)) for dtype in DataType),
        TensorSpec("scalar", DataType.FLOAT32, ()),
        TensorSpec("empty", DataType.FLOAT64, (4, 0, 2)),
        TensorSpec("größe/重み:0", DataType.BFLOAT16, (5,)),
        TensorSpec("norm/moving_mean", DataType.FLOAT32, (4,), trainable=False, role=TensorRole.STATISTIC),
    )
)
"""In bytes 3, then 6 elements of each type, and so on; most tensors are unaligned."""


def random_weights(schema: ModelSchema = AWKWARD, seed: int = 0) -> dict[str, np.ndarray]:
    """Any bits at all, so NaN payloads and infinities too; booleans are 0 or 1."""
    generator = np.random.default_rng(seed)
    return {spec.name: _random(generator, spec) for spec in schema}


def _random(generator: np.random.Generator, spec: TensorSpec) -> np.ndarray:
    if spec.dtype is DataType.BOOL:
        return generator.integers(0, 2, spec.shape).astype(np.bool_)
    return np.frombuffer(generator.bytes(spec.size_bytes), spec.dtype.numpy).reshape(spec.shape)


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether names, their order, types, shapes and every bit agree; NaN equals the same NaN."""
    facts = [
        [(name, str(values.dtype), values.shape, values.tobytes()) for name, values in weights.items()]
        for weights in (one, other)
    ]
    return facts[0] == facts[1]


def entry(
    name: str = "kernel",
    dtype: DataType = DataType.FLOAT32,
    shape: tuple[int, ...] = (2, 3),
    size_bytes: int = 24,
    sha256: bytes = b"\x11" * 32,
) -> TensorEntry:
    """An entry that is fine by itself, but for what is given."""
    return TensorEntry(name, dtype, shape, Digest(sha256, size_bytes))
