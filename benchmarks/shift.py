"""The work of `benchmarks.arithmetic` as a task: the model grows by 1.0 a round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.arithmetic import NUM_TENSORS, initial_tensor, step_of, tensor_name
from fedstream.dtypes import DataType
from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning, TensorSpec
from fedtask.task import EpochReport, Evaluation, FineTuned, Report, SiteOptions, SiteSummary, TaskError, Weights

REFERENCE = "benchmarks.shift:Shift"
_EXAMPLES = 100


class Shift:
    """See the module; `fedtask.task.Task` has what the members mean. Setting: `mib`, of the whole model."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._num_elements = int(float(settings["mib"]) * 2**20) // 4 // NUM_TENSORS
        self._add = np.float32(0)

    def meaning(self) -> TaskMeaning:
        return TaskMeaning(("no", "yes"), "yes", "none")

    def schema(self) -> ModelSchema:
        specs = (TensorSpec(tensor_name(i), DataType.FLOAT32, (self._num_elements,)) for i in range(NUM_TENSORS))
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
