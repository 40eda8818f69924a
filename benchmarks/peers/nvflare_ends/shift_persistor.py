"""The model of `benchmarks.arithmetic` at NVFLARE's server. Runs in an environment that has nvflare.

It is made there, and written each round, as by NVFLARE's own persistors, of which the one for numpy takes one array.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor

from benchmarks.arithmetic import initial_model
from benchmarks.peers.progress import Progress


class ShiftPersistor(ModelPersistor):
    """Tells `progress` of each model, and of the one after `rounds` whether it is right."""

    def __init__(self, mib: float, rounds: int, progress: str) -> None:
        super().__init__()
        self.mib = mib
        self.rounds = rounds
        self.progress = progress
        self._saved = 0

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        return make_model_learnable(weights=initial_model(self.mib), meta_props={})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        weights, progress = model[ModelLearnableKey.WEIGHTS], Progress(Path(self.progress))
        np.savez(Path(self.progress).with_name("model.npz"), **weights)
        progress.aggregated()
        self._saved += 1
        if self._saved == self.rounds:
            progress.finished(weights, self.rounds)
