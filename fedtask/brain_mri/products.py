"""Training with matrix products in bfloat16, where the processor has instructions for them. Imports tensorflow.

Most of a step's time is the products of MobileNetV2's 1x1 convolutions and of their gradients, which a processor made
for it does nearly twice as fast in bfloat16. Weights and all other layers stay float32, and scoring is untouched.
Measured: docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

_CPU_FACTS = Path("/proc/cpuinfo")
_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}


def multiplies_bfloat16(cpu_facts: Path = _CPU_FACTS) -> bool:
    """Whether training runs on a processor with such instructions; elsewhere bfloat16 would be slower, not faster."""
    if tf.config.list_physical_devices("GPU") or not cpu_facts.exists():
        return False
    lines = cpu_facts.read_text(errors="replace").splitlines()
    return any(line.startswith("flags") and not _CPU_FLAGS.isdisjoint(line.split()) for line in lines)


def forward_in_bfloat16(model: Any) -> Callable[[Any], Any]:
    """What a model makes of a batch in training, with the products of its 1x1 convolutions in bfloat16."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (1, 1)]

    def forward(inputs: Any) -> Any:
        # For the length of a trace only: the same layers score in float32, and are exported as what they are.
        with _policy(layers, "mixed_bfloat16"):
            return model(inputs, training=True)

    return forward


@contextmanager
def _policy(layers: Sequence[Any], name: str) -> Iterator[None]:
    before = [layer.dtype_policy for layer in layers]
    for layer in layers:
        layer.dtype_policy = keras.DTypePolicy(name)
    try:
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy
