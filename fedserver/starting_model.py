"""The model that a federation goes on from: the last one that is stored, or the task's initial one."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import structlog

from fedserver.aggregation import largest_absolute
from fedserver.config import ServerConfig
from fedserver.disk_trouble import durably
from fedserver.federation import Federation, FederationFailed
from fedserver.store.facts import SOURCES_FACT
from fedserver.store.models import StoredModel
from fedserver.store.retention import SCRATCH_MODEL
from fedstream.errors import UnknownModel
from fedstream.manifest import described
from fedstream.schema import ModelSchema
from fedstream.weights_file import WeightsFile
from fedtask.task import Weights

log = structlog.get_logger()


async def model_to_go_on_from(federation: Federation, version: int) -> StoredModel:
    """The stored model of that version, the last that a round has made, or the initial one, made if need be.

    Raises:
        FederationFailed: it is not of this task, or not of the initial weights that the options name, or not finite.
        TaskError, WorkerCrashed: the initial model cannot be made.
        DamagedFile: it is not what was stored.
    """
    stored = _model_of(federation, version)
    if stored is None:
        return await _initial_model(federation)
    await asyncio.to_thread(stored.check)
    expected = [(spec.name, spec.dtype, spec.shape) for spec in federation.schema]
    if [(entry.name, entry.dtype, entry.shape) for entry in stored.manifest] != expected:
        raise FederationFailed(
            f"the state directory {federation.state.folder} holds another model than this task's; "
            "give another --state, or the settings it was begun with"
        )
    begin_anew = f"it stands in {federation.state.folder}: begin anew with another --state and a finite first model"
    await asyncio.to_thread(_require_finite, federation.schema, stored.weights(), begin_anew)
    _compare_sources(federation, stored)
    return stored


def _model_of(federation: Federation, version: int) -> StoredModel | None:
    try:
        return federation.state.models.of_version(version)
    except UnknownModel:
        return None


def _compare_sources(federation: Federation, stored: StoredModel) -> None:
    """See that nobody takes the model there is for one that was made as the options say.

    After the first round there is no way back, and the options may as well be left out.
    """
    begun, given = federation.state.fact(SOURCES_FACT), _sources(federation)
    known = json.loads(begun) if begun is not None else given
    differing = [option for option, value in given.items() if value is not None and value != known[option]]
    if not differing:
        return
    words = f"the first model in {federation.state.folder} was not made with this {' and '.join(differing)}"
    if stored.version == 0:
        raise FederationFailed(f"{words}; give another --state to begin anew, or leave that off")
    log.warning("going on from the last model all the same", because=words)


def _sources(federation: Federation) -> dict[str, str | None]:
    given = {
        "--backbone-weights": federation.config.backbone_weights,
        "--initial-model": federation.config.initial_model,
    }
    return {option: _whole(value) if value is not None else None for option, value in given.items()}


def _whole(source: str | Path) -> str:
    """A file by its whole path, however it was named; a word such as `random` as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else str(source)


async def _initial_model(federation: Federation) -> StoredModel:
    config, state = federation.config, federation.state
    scratch = state.folder / SCRATCH_MODEL
    await federation.evaluator.initial_model(config.seed, config.backbone_weights, config.initial_model, scratch)

    def store() -> StoredModel:
        # Before anything is kept of it: what is refused leaves no trace.
        _require_finite(federation.schema, WeightsFile(scratch).on_demand(), _how_to_begin(config))
        state.remember(SOURCES_FACT, json.dumps(_sources(federation)))
        tensors = described(federation.schema, WeightsFile(scratch).on_demand())
        return state.models.add(0, federation.schema, tensors)

    try:
        return await durably(federation, lambda: asyncio.to_thread(store))
    finally:
        scratch.unlink()


def _require_finite(schema: ModelSchema, weights: Weights, way_out: str) -> None:
    """See that updates can be measured against this model, one tensor in memory at a time.

    Without this, every update would be refused, however sound, as if the server had a defect. A frozen tensor passes
    through rounds as it is, such as a mask with infinity in it: nothing is measured against that.
    """
    for spec in schema:
        if not (spec.trainable and spec.dtype.is_floating):
            continue
        if not math.isfinite(value := largest_absolute(spec, weights[spec.name])):
            raise FederationFailed(
                f"the model to go on from has {value} in its tensor {spec.name}, and nothing can be learned from "
                f"that; {way_out}"
            )


def _how_to_begin(config: ServerConfig) -> str:
    if config.initial_model is not None:
        return f"give another --initial-model than {config.initial_model}"
    if config.backbone_weights is not None:
        return f"give other --backbone-weights than {config.backbone_weights}"
    return f"the task {config.task} begins with it: mend the task, or give an --initial-model"
