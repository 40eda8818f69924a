"""Tensors read from a model file, held against the schema they should have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedstream.dtypes import DataType
from fedstream.schema import ModelSchema, TensorSpec
from fedtask.task import TaskError, Weights

_MOST_SHOWN = 10


def in_schema_order(schema: ModelSchema, tensors: Mapping[str, np.ndarray], path: Path) -> Weights:
    """The tensors in the order of the schema, if they are those of the schema by name, shape and dtype.

    Raises:
        TaskError: they are not; the message names the file and up to ten differing tensors.
    """
    differences = [text for spec in schema if (text := _difference(spec, tensors.get(spec.name)))]
    differences += [
        f"{name} {list(tensors[name].shape)} is not in this model" for name in tensors if name not in schema
    ]
    if differences:
        raise TaskError(f"{path} holds another model: {enumerate_some(differences)}")
    return {spec.name: tensors[spec.name] for spec in schema}


def enumerate_some(sentences: list[str]) -> str:
    """The first ten, and the count of the rest."""
    rest = len(sentences) - _MOST_SHOWN
    return "; ".join(sentences[:_MOST_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _difference(spec: TensorSpec, found: np.ndarray | None) -> str:
    wanted = f"{spec.dtype.name.lower()} {list(spec.shape)}"
    if found is None:
        return f"{spec.name} {wanted} is missing"
    if found.shape == spec.shape and found.dtype == spec.dtype.numpy:
        return ""
    try:
        dtype = DataType.of(found.dtype).name.lower()
    except ValueError:
        dtype = str(found.dtype)
    return f"{spec.name} is {dtype} {list(found.shape)} there and {wanted} here"
