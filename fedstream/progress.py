"""How far a client is with its work on an offer: the words of `Phase` and `Progress` in the contract, at both ends."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Phase(enum.Enum):
    """What a client does for an offer. Values are the words shown to people."""

    UNKNOWN = "unknown"
    DOWNLOADING = "downloading"
    PREPARING = "preparing"
    TRAINING = "training"
    UPLOADING = "uploading"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work on an offer is.

    `epoch` counts from 1 and is 0 outside training; `fraction` is of the phase, from 0 to 1. `undefined` is why metrics
    have no value, by name.
    """

    phase: Phase = Phase.UNKNOWN
    epoch: int = 0
    epochs: int = 0
    fraction: float = 0.0
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)
