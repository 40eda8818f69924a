"""What scenes are played with: a task that any language can do, a site's data, and models small enough to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedstream.manifest import Manifest, manifest_of, raw_bytes
from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning
from fedtask.brain_mri_head.features import Features, Labelled, write_features
from fedtask.registry import create_task
from fedtask.task import Weights

NUM_EXAMPLES = 48
_WIDTH = 2048
_HEAD_SETTINGS = {"backbone": "none", "features": str(_WIDTH), "batch_size": "8", "learning_rate": "0.01"}
_LINEAR_WIDTH = 10


@dataclass(frozen=True, slots=True)
class Model:
    """A model in memory, with the bytes of each tensor."""

    manifest: Manifest
    values: tuple[bytes, ...]

    @classmethod
    def of(cls, schema: ModelSchema, weights: Weights) -> Model:
        """The model of these weights."""
        values = tuple(bytes(raw_bytes(np.asarray(weights[spec.name]))) for spec in schema)
        return cls(manifest_of(schema, weights), values)


@dataclass(frozen=True, slots=True)
class Material:
    """A federation's task, as the conformance server plays it. Chunks are small, so that every body is many."""

    task: str
    settings: Mapping[str, str]
    schema: ModelSchema
    meaning: TaskMeaning
    plan: Plan
    base: Model
    later: Model
    """Another model of the schema, from which a later round starts."""
    final: Model
    chunk_bytes: int
    window_bytes: int

    def write_data(self, folder: Path) -> Path:
        """Make a site's data there; returns what the client is to be pointed at."""
        rng = np.random.default_rng(0)
        y = np.arange(NUM_EXAMPLES) % 2
        width = _WIDTH if self.task == "brain_mri_head" else _LINEAR_WIDTH
        x = rng.standard_normal((NUM_EXAMPLES, width)) + np.outer(2 * y - 1, np.full(width, 0.1))
        if self.task == "linear":
            np.savez(folder / "train.npz", x=x, y=y)
            return folder
        every = Labelled(x.astype(np.float32), y.astype(np.int64))
        in_val = np.arange(NUM_EXAMPLES) % 6 == 5
        parts = every.take(~in_val), every.take(in_val)
        path = folder / "site.features"
        write_features(Features(*parts, self.meaning.canonical_bytes()), path)
        return path


def material(task: str) -> Material:
    """The material of `brain_mri_head` or `linear`.

    Raises:
        ValueError: it is another task; the message names those that there are.
    """
    if task not in {"brain_mri_head", "linear"}:
        raise ValueError(f"conformance is played with brain_mri_head or linear, not {task}")
    settings = _HEAD_SETTINGS if task == "brain_mri_head" else {}
    made = create_task(task, settings)
    schema, plan = made.schema(), made.default_plan()
    base = made.initial_weights(0, None)
    later, final = ({name: values + np.float32(by) for name, values in base.items()} for by in (0.25, 0.5))
    return Material(
        task,
        settings,
        schema,
        made.meaning(),
        Plan(2, 8, plan.learning_rate, 0, seed=7),
        Model.of(schema, base),
        Model.of(schema, later),
        Model.of(schema, final),
        chunk_bytes=512 if task == "brain_mri_head" else 4,
        window_bytes=2048 if task == "brain_mri_head" else 16,
    )
