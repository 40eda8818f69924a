"""A task whose federation has a result that is known beforehand, to the bit: the model grows by 1.0 a round.

Client i of N returns what it received plus 1.0 + (i - (N - 1) / 2) / 64, so that the mean over all is exactly +1.0.
Every number on the way is a multiple of 2**-16 below 64 in size, which float32 holds exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedstream.dtypes import DataType
from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning, TensorSpec
from fedtask.task import EpochReport, Evaluation, FineTuned, Report, SiteOptions, SiteSummary, TaskError, Weights

REFERENCE = "benchmarks.shift:Shift"
NUM_TENSORS = 64
_EXAMPLES = 100
_STEP = 2.0**-12


def step_of(client: int, clients: int) -> np.float32:
    """What client `client`, counted from 0, of `clients` adds."""
    return np.float32(1.0 + (client - (clients - 1) / 2) / 64)


def initial_tensor(index: int, num_elements: int, seed: int) -> np.ndarray:
    """A tensor of round 0, float32 `[num_elements]`, different for each index, in [-16, 16)."""
    generator = np.random.default_rng([seed, index])
    return (generator.integers(-(2**16), 2**16, num_elements, np.int32) * _STEP).astype(np.float32)


class Shift:
    """See the module; `fedtask.task.Task` has what the members mean. Setting: `mib`, of the whole model."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._num_elements = int(settings["mib"]) * 2**20 // 4 // NUM_TENSORS
        self._add = np.float32(0)

    def meaning(self) -> TaskMeaning:
        return TaskMeaning(("no", "yes"), "yes", "none")

    def schema(self) -> ModelSchema:
        specs = (TensorSpec(f"tensor_{i:02d}", DataType.FLOAT32, (self._num_elements,)) for i in range(NUM_TENSORS))
        return ModelSchema(tuple(specs))

    def default_plan(self) -> Plan:
        return Plan(epochs=1, batch_size=1, learning_rate=1.0, early_stopping_patience=0, seed=0)

    def initial_weights(self, seed: int, source: str | None) -> Weights:
        return {spec.name: initial_tensor(i, self._num_elements, seed) for i, spec in enumerate(self.schema())}

    def open_site(self, options: SiteOptions) -> SiteSummary:
        self._add = step_of(options.shard, options.num_shards)
        return SiteSummary(_EXAMPLES, {"train": {"no": _EXAMPLES // 2, "yes": _EXAMPLES // 2}}, synthetic=True)

    def fine_tune(self, base: Weights, plan: Plan, report: Report) -> FineTuned:
        report(EpochReport("training", 1, 1, 0.0))
        trained = {name: values + self._add for name, values in base.items()}
        return FineTuned(trained, _EXAMPLES, {}, [{"loss": 0.0}])

    def export(self, weights: Weights, folder: Path, stem: str) -> list[Path]:
        """Nothing: a task's own file format is not what is measured."""
        return []

    def open_holdout(self, folder: Path | None, classes: Mapping[str, str]) -> SiteSummary:
        raise TaskError("this task has no holdout")

    def evaluate(self, weights: Weights) -> Evaluation:
        raise TaskError("this task has no holdout")

    def read_model(self, path: Path) -> Weights:
        raise TaskError("this task reads no model files")
