"""An aggregate made again from the base and the updates, and compared bit for bit.

Memory: the accumulator's 8 bytes an element, and one tensor at a time of everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fedserver.aggregation import Accumulator, AggregationError
from fedserver.store.ledger import Entry
from fedserver.store.models import StoredModel
from fedserver.store.uploads import FinishedUpload
from fedserver.verification.findings import Difference
from fedstream.manifest import Digest, Manifest, raw_bytes
from fedstream.schema import ModelSchema, TensorSpec

_THREADS = 2


def recompute(
    entry: Entry, base: StoredModel, uploads: Mapping[int, FinishedUpload], model: StoredModel, *, compare_values: bool
) -> Iterator[Difference]:
    """Where the aggregate differs from what is recorded of it, tensor by tensor.

    Args:
        entry: the round's.
        base: its base model; the file is sound.
        uploads: every update that the entry says is in, by rank; their files are sound.
        model: what came out.
        compare_values: whether its file is there and sound; else the digests of its manifest have to do.
    """
    limits = {member.rank: member.weight_limit for member in entry.cohort}
    try:
        accumulator = Accumulator(_schema_of(base.manifest), base.weights(), limits, threads=_THREADS)
        for member, _, weight in entry.admitted:
            accumulator.fold(member.rank, weight, uploads[member.rank].update.tensors())
        stored, known = model.weights() if compare_values else {}, model.manifest.by_name()
        for name, values in accumulator.iter_result(lambda rank, name: uploads[rank].update.tensors()[name]):
            yield from _compared(name, values, stored, known[name].digest)
    except (AggregationError, ValueError, KeyError) as error:
        yield Difference("aggregate", f"it cannot be made again from what the entry says: {error}")


def _schema_of(manifest: Manifest) -> ModelSchema:
    """Names, types and shapes are all that the sums depend on."""
    return ModelSchema(tuple(TensorSpec(entry.name, entry.dtype, entry.shape) for entry in manifest))


def _compared(name: str, made: np.ndarray, known: Mapping[str, np.ndarray], digest: Digest) -> Iterator[Difference]:
    if Digest.of(raw_bytes(made)) == digest:
        return
    where, stored = f"aggregate, tensor {name}", known.get(name)
    if stored is None:
        yield Difference(where, f"made again it has not the recorded digest {digest.hex}")
        return
    differing = np.flatnonzero(_bits(made) != _bits(stored))
    index = np.unravel_index(int(differing[0]), made.shape)
    what = f"{differing.size} of {made.size} values differ, the first at {[int(place) for place in index]}"
    yield Difference(where, f"{what}: made again it is {made[index]!r}, stored is {stored[index]!r}")


def _bits(values: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.dtype(f"u{flat.itemsize}"))
