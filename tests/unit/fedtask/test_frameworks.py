"""Keras where something else has loaded it before; that a user's settings change nothing is in `test_features.py`."""

from __future__ import annotations

import importlib

import keras
import pytest

from fedtask import frameworks
from fedtask.task import TaskError


def test_keras_that_a_task_has_loaded_with_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(TaskError, match=r"^keras was loaded with jax, .* or set KERAS_BACKEND=tensorflow"):
        importlib.reload(frameworks)


def test_keras_that_a_task_has_loaded_keeps_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.config, "set_floatx", pytest.fail)
    importlib.reload(frameworks)
