"""The files that settings name: they are there and can be read. Whether they fit the model, the first start says."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from fedserver.config import ServerConfig
from fedserver.store import StateError, StateReader
from fedserver.store.errors import EarlierVersion
from fedserver.store.folder import is_state_directory
from fedstream.certificates import facts_of
from fedstream.checkup.runner import Result, failed, ok
from fedtask.registry import create_task, is_built_in

_WORDS = frozenset({"imagenet", "random"})
"""What `--backbone-weights` takes that is no file."""


def first_model(config: ServerConfig) -> Result:
    """What the federation's first model is made of. A state directory that has a model needs it no more."""
    option, path = _source(config)
    if path is None:
        return ok("no file is named: it is made, or its weights are downloaded, at the first start")
    if _has_model(config):
        return ok("is made already; nothing is read for it any more")
    if problem := _why_unreadable(path):
        return failed(f"{path} {problem}", f"Name a file with {option} that the user of the service may read")
    return ok(f"{path} can be read")


def _source(config: ServerConfig) -> tuple[str, Path | None]:
    """The option, and the file that it names; an earlier model goes over weights, as in `fedserver run`."""
    if config.initial_model is not None:
        return "--initial-model", config.initial_model
    named = config.backbone_weights
    if named is None or named in _WORDS or _is_word_of_own_task(config, named):
        return "--backbone-weights", None
    return "--backbone-weights", Path(named)


def _is_word_of_own_task(config: ServerConfig, named: str) -> bool:
    if is_built_in(create_task(config.task, config.task_settings)):
        return False
    return not os.path.exists(named)  # noqa: PTH110 - Path.exists raises where the folder may not be entered


def _has_model(config: ServerConfig) -> bool:
    try:
        if not is_state_directory(config.state):
            return False
        with closing(StateReader(config.state)) as reader:
            return reader.models().latest() is not None
    except EarlierVersion:  # on which a server has run
        return True
    except StateError:  # another check says what is wrong with it
        return False


def client_authority(config: ServerConfig) -> Result:
    """The certificate of an authority whose sites need no invitation."""
    path = config.client_ca
    if path is None:
        return ok("none is named: sites come by invitation")
    if problem := _why_unreadable(path):
        return failed(f"{path} {problem}", "Name a file with --client-ca that the user of the service may read")
    try:
        facts = facts_of(path.read_bytes())
    except ValueError:
        return failed(f"{path} holds no certificate", "Name its certificate in PEM with --client-ca")
    return ok(f"{path} can be read, {facts.fingerprint}")


def _why_unreadable(path: Path) -> str:
    """What keeps a file from being read, for people; empty where nothing does."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return ""
