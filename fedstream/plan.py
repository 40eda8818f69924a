"""The hyper-parameters of one local fine-tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Plan:
    """What a client is asked to do with a base model. A fine-tune depends on its base, its plan and the data only.

    `epochs` is the most that may be run; `early_stopping_patience` is the number of epochs without a better validation
    loss after which a fine-tune stops, 0 for never. `seed` drives shuffling, augmentation and dropout. `settings` are
    the task's own, as text.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    early_stopping_patience: int
    seed: int
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
