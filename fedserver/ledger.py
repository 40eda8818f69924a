"""What the ledger says of a round; `fedserver.store.ledger` says how it is written and chained.

Fields of an entry:

    format           "fedstream ledger v1"
    round            number, from 1
    previous         hash of the entry before, hexadecimal
    succeeded        whether a new global model came out
    reason           why the round ended so
    closed           when, by the server's clock, ISO 8601; for people only
    base, aggregate  {version, model_digest} of the model that the round started from, and of what came out or null
    strategy         name of the strategy
    plan             the hyper-parameters offered, before each client's seed
    min_clients, reporting_goal
    cohort           by rank: {rank, client, claimed_examples, weight_limit, epochs, seed, outcome, reason, update}
    update           null, or {model_digest, num_examples, weight, admission, reason, metrics}: the digest of the
                     update's manifest, what its client claims, its weight before normalising (null if it is not in the
                     aggregate), and "admitted" or "quarantined" for the reason
    late             {rank, reason} of updates that came after their part had ended, as far as known by then
    evaluation       null, or {num_examples, metrics} of the new model on the holdout
    evaluation_reason
    schema_sha256, meaning_sha256
    code             versions of fedstream, numpy and Python
    configuration_sha256
                     of the canonical JSON of the settings, without `listen`, `advertise`, `state` and `out`
    record_sha256    of the round's record in table `rounds`

Digests are sha256 in hexadecimal. A metric that is NaN or infinite is null.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from typing import Any

from fedserver.config import ServerConfig
from fedserver.coordinator.effects import ModelRef
from fedserver.coordinator.participation import Participation
from fedserver.coordinator.round import Round
from fedserver.federation import Federation, ref_of
from fedserver.intake import Intake
from fedserver.store import UploadState
from fedserver.store.ledger import FORMAT, canonical_json, last_hash
from fedserver.store.models import StoredModel
from fedserver.store.rounds import late_updates
from fedserver.store.uploads import FinishedUpload, finished_uploads
from fedtask.report import PlanRecord, RoundRecord

_OF_THIS_MACHINE = frozenset({"listen", "advertise", "state", "out"})


def ledger_fields(
    federation: Federation, round_: Round, intake: Intake, model: StoredModel | None, record: RoundRecord, text: str
) -> dict[str, Any]:
    """The fields of a closed round's entry.

    Args:
        federation: whose round it is.
        round_: closed, with all outcomes settled.
        intake: that took its updates.
        model: what came out, if anything.
        record: of the round.
        text: the record as it is stored.
    """
    state = federation.state
    uploads = {one.rank: one for one in finished_uploads(state.database, state.uploads.folder, round_.number)}
    return {
        "format": FORMAT,
        "round": round_.number,
        "previous": last_hash(state.database),
        "succeeded": record.succeeded,
        "reason": record.reason,
        "closed": record.closed.isoformat() if record.closed is not None else None,
        "base": _model(round_.base),
        "aggregate": _model(ref_of(model)) if model is not None else None,
        "strategy": federation.config.strategy,
        "plan": _plan(federation),
        "min_clients": round_.rules.min_clients,
        "reporting_goal": round_.rules.reporting_goal,
        "cohort": [_member(part, intake, uploads.get(part.rank)) for part in round_.participations],
        "late": [
            {"rank": rank, "reason": reason} for rank, reason in late_updates(state.database, round_.number).items()
        ],
        "evaluation": _evaluation(record),
        "evaluation_reason": record.evaluation_reason,
        "schema_sha256": federation.schema.digest().hex() if federation.schema is not None else None,
        "meaning_sha256": federation.meaning.digest().hex(),
        "code": _code(),
        "configuration_sha256": configuration_sha256(federation.config),
        "record_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _model(ref: ModelRef) -> dict[str, Any]:
    return {"version": ref.version, "model_digest": ref.digest.hex}


def _plan(federation: Federation) -> dict[str, Any]:
    plan = PlanRecord.of(federation.plan)
    return {
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "early_stopping_patience": plan.early_stopping_patience,
        "settings": dict(plan.settings),
    }


def _member(part: Participation, intake: Intake, upload: FinishedUpload | None) -> dict[str, Any]:
    assert part.outcome is not None, "every part of a closed round has ended"
    return {
        "rank": part.rank,
        "client": part.client,
        "claimed_examples": part.claimed_examples,
        "weight_limit": intake.weight_limits[part.rank],
        "epochs": part.plan.epochs,
        "seed": part.plan.seed,
        "outcome": part.outcome.value,
        "reason": part.reason,
        "update": _update(part, intake.weights.get(part.rank), upload) if upload is not None else None,
    }


def _update(part: Participation, weight: float | None, upload: FinishedUpload) -> dict[str, Any]:
    admitted = weight is not None
    reason = upload.reason if upload.state is UploadState.QUARANTINED else part.reason
    return {
        "model_digest": upload.update.manifest.model_digest().hex,
        "num_examples": upload.update.facts.num_examples,
        "weight": weight,
        "admission": (UploadState.ADMITTED if admitted else UploadState.QUARANTINED).value,
        "reason": "" if admitted else reason,
        "metrics": _finite(upload.update.facts.metrics),
    }


def _evaluation(record: RoundRecord) -> dict[str, Any] | None:
    evaluation = record.evaluation
    if evaluation is None:
        return None
    return {"num_examples": evaluation.num_examples, "metrics": _finite(evaluation.metrics)}


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
