"""What the ledger is told of a round; `fedserver.store.ledger` has the form of an entry and the chain."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping

from fedserver.config import ServerConfig
from fedserver.coordinator.participation import Participation
from fedserver.federation import Federation, ref_of
from fedserver.intake import Intake
from fedserver.store import UploadState
from fedserver.store.ledger import (
    FORMAT,
    CommonPlan,
    Entry,
    LateUpdate,
    Member,
    ModelName,
    Scores,
    UpdateEntry,
    canonical_json,
    last_hash,
)
from fedserver.store.models import StoredModel
from fedserver.store.rounds import late_updates
from fedserver.store.uploads import Said, said_of_finished
from fedstream.manifest import ModelRef
from fedstream.plan import Plan
from fedtask.report import RoundRecord

_OF_THIS_MACHINE = frozenset(
    {"listen", "enrol_listen", "metrics_listen", "advertise", "client_ca", "state", "out", "pictures"}
)


def ledger_entry(
    federation: Federation, intake: Intake, model: StoredModel | None, record: RoundRecord, text: str
) -> Entry:
    """A closed round's entry.

    Args:
        federation: whose round it is.
        intake: the round, closed, with all outcomes settled, and its updates.
        model: what came out, if anything.
        record: of the round.
        text: the record as it is stored.
    """
    state, round_ = federation.state, intake.round
    uploads = {said.rank: said for said in said_of_finished(state.database, round_.number)}
    weights = intake.weights
    late = late_updates(state.database, round_.number)
    return Entry(
        format=FORMAT,
        round=round_.number,
        previous=last_hash(state.database),
        succeeded=record.succeeded,
        reason=record.reason,
        closed=record.closed.isoformat() if record.closed is not None else None,
        base=_name_of(round_.base),
        aggregate=_name_of(ref_of(model)) if model is not None else None,
        strategy=federation.config.strategy,
        plan=_common(round_.rules.plan or federation.plan),
        min_clients=round_.rules.min_clients,
        reporting_goal=round_.rules.reporting_goal,
        cohort=[_member(part, intake.weight_limits, weights, uploads.get(part.rank)) for part in round_.participations],
        late=[LateUpdate(rank, reason) for rank, reason in late.items()],
        evaluation=_scores(record),
        evaluation_reason=record.evaluation_reason,
        schema_sha256=federation.schema.digest().hex(),
        meaning_sha256=federation.meaning.digest().hex(),
        code=_code(),
        configuration_sha256=configuration_sha256(federation.config),
        record_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _name_of(ref: ModelRef) -> ModelName:
    return ModelName(ref.version, ref.digest.hex)


def _common(plan: Plan) -> CommonPlan:
    return CommonPlan(
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        early_stopping_patience=plan.early_stopping_patience,
        settings=dict(plan.settings),
    )


def _member(
    part: Participation, weight_limits: Mapping[int, float], weights: Mapping[int, float], upload: Said | None
) -> Member:
    assert part.outcome is not None, "every part of a closed round has ended"
    return Member(
        rank=part.rank,
        client=part.client,
        claimed_examples=part.claimed_examples,
        weight_limit=weight_limits[part.rank],
        epochs=part.plan.epochs,
        seed=part.plan.seed,
        outcome=part.outcome.value,
        reason=part.reason,
        update=_update(part, weights.get(part.rank), upload) if upload is not None else None,
    )


def _update(part: Participation, weight: float | None, upload: Said) -> UpdateEntry:
    # One that the checks against the cohort took out is still admitted by its own row, until this entry is written.
    reason = upload.reason if upload.state is UploadState.QUARANTINED else part.reason
    return UpdateEntry(
        model_digest=upload.model_digest.hex,
        num_examples=upload.facts.num_examples,
        weight=weight,
        admission="admitted" if weight is not None else "quarantined",
        reason="" if weight is not None else reason,
        metrics=_finite(upload.facts.metrics),
    )


def _scores(record: RoundRecord) -> Scores | None:
    if record.evaluation is None:
        return None
    return Scores(record.evaluation.num_examples, _finite(record.evaluation.metrics))


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}


def _code() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("fedstream", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def configuration_sha256(config: ServerConfig) -> str:
    """The digest of what was set, apart from what belongs to the machine."""
    settings = json.loads(config.model_dump_json(exclude=set(_OF_THIS_MACHINE)))
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()
