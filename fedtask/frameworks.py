"""Tensorflow and Keras, with the same settings on every machine. Importing this imports them.

A machine that is used for other work has settings of its user's own in `~/.keras/keras.json` and `KERAS_BACKEND`: there
a model could not be built, or would have tensors of other types than everywhere else. Where a task of one's own has
loaded Keras before, by itself or with tensorflow, its settings are that task's.
"""

from __future__ import annotations

import os
import sys

from fedtask.task import TaskError

_BACKEND = "tensorflow"
_IS_LOADED_BY_TASK = "keras" in sys.modules

if not _IS_LOADED_BY_TASK:
    os.environ["KERAS_BACKEND"] = _BACKEND

import keras  # noqa: E402 - it looks at the environment, and tensorflow imports it
import tensorflow as tf  # noqa: E402 - as above

if not _IS_LOADED_BY_TASK:
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)

if keras.config.backend() != _BACKEND:
    loaded = f"keras was loaded with {keras.config.backend()}, and not with {_BACKEND}"
    raise TaskError(
        f"{loaded}: import it inside the task's methods, or set KERAS_BACKEND={_BACKEND} in the environment"
    )

__all__ = ["keras", "tf"]
