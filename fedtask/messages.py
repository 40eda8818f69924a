"""The JSON that a process and its worker exchange, one object a line. Both ends are the same program on one machine."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fedstream.dtypes import DataType
from fedstream.manifest import Digest, TensorEntry
from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning, TensorSpec
from fedtask.adapters import adapter
from fedtask.task import Metrics, ReportWords

T = TypeVar("T")


@dataclass(frozen=True)  # without slots, for what is made once
class TaskDescription:
    """What a worker says of its task once it has built the model."""

    meaning: TaskMeaning
    tensors: tuple[TensorSpec, ...]
    default_plan: Plan
    report_words: ReportWords = field(default_factory=ReportWords)

    @functools.cached_property
    def schema(self) -> ModelSchema:
        """The tensors as a schema."""
        return ModelSchema(self.tensors)


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """A `TensorEntry` as JSON can hold it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256_hex: str
    size_bytes: int

    @classmethod
    def of(cls, entry: TensorEntry) -> EntryRecord:
        """The record of `entry`."""
        return cls(entry.name, entry.dtype.value, entry.shape, entry.digest.hex, entry.digest.size_bytes)

    def entry(self) -> TensorEntry:
        """The entry of this record."""
        digest = Digest(bytes.fromhex(self.sha256_hex), self.size_bytes)
        return TensorEntry(self.name, DataType(self.dtype), self.shape, digest)


@dataclass(frozen=True, slots=True)
class LocalUpdate:
    """A finished local fine-tune: facts here, the changed tensors in a weights file beside it.

    `changed` are the entries of the tensors whose values differ from the base model's; all others are as they were.
    """

    changed: tuple[EntryRecord, ...]
    num_examples: int
    metrics: Metrics
    history: tuple[Metrics, ...]
    epochs: int
    training_seconds: float


def to_json(value: object, kind: Any = None) -> Any:
    """A dataclass tree as plain JSON types; a mapping of any kind becomes an object."""
    return adapter(kind or type(value)).dump_python(value, mode="json", fallback=dict, warnings="none")


def from_json(kind: type[T], value: Any) -> T:
    """The dataclass tree that `to_json` made `value` of."""
    return adapter(kind).validate_python(value)
