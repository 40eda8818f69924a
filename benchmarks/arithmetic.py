"""Work whose result is known beforehand, to the bit, for fedstream and its peers alike. numpy alone.

Client i of N returns what it received plus 1.0 + (i - (N - 1) / 2) / 64, so that the mean over all is exactly +1.0.
Every number on the way is a multiple of 2**-16 below 64 in size, which float32 holds exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NUM_TENSORS = 64
SEED = 7
_STEP = 2.0**-12


def step_of(client: int, clients: int) -> np.float32:
    """What client `client`, counted from 0, of `clients` adds."""
    return np.float32(1.0 + (client - (clients - 1) / 2) / 64)


def tensor_name(index: int) -> str:
    """What tensor `index` is called."""
    return f"tensor_{index:02d}"


def initial_tensor(index: int, num_elements: int, seed: int = SEED) -> np.ndarray:
    """A tensor of round 0, float32 `[num_elements]`, different for each index, in [-16, 16)."""
    generator = np.random.default_rng([seed, index])
    return (generator.integers(-(2**16), 2**16, num_elements, np.int32) * _STEP).astype(np.float32)


def initial_model(mib: float, seed: int = SEED) -> dict[str, np.ndarray]:
    """All tensors of round 0, of `mib` MiB together."""
    num_elements = int(mib * 2**20) // 4 // NUM_TENSORS
    return {tensor_name(index): initial_tensor(index, num_elements, seed) for index in range(NUM_TENSORS)}


def first_wrong(model: Mapping[str, np.ndarray], rounds: int, tolerance: float = 0.0) -> str | None:
    """The first tensor that is further than `tolerance` from its initial value plus `rounds`; `None` if none is."""
    for index in range(NUM_TENSORS):
        values = np.asarray(model[tensor_name(index)])
        due = initial_tensor(index, values.size) + np.float32(rounds)
        if values.shape != due.shape or not np.allclose(values, due, rtol=0.0, atol=tolerance):
            return tensor_name(index)
    return None
