"""What the server's doctor says of files that settings name. A moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedserver.config import ServerConfig
from fedserver.doctor.checkup import checks_for
from fedserver.doctor.files import client_authority, first_model
from fedserver.store import State
from fedstream.certificates import facts_of, make_authority
from fedstream.checkup.runner import Result, Verdict, ok
from fedstream.manifest import described
from fedtask.linear import Linear
from tests.support.rights import closed, open_folder

pytestmark = pytest.mark.numpy_task


def config(folder: Path, **settings: Any) -> ServerConfig:
    return ServerConfig(**{"task": "linear", "state": folder / "state", **settings})


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In place of pytest's own, which no other user may enter."""
    with open_folder() as folder:
        yield folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.h5"
    path.write_bytes(b"weights")
    return path


@pytest.mark.parametrize("word", [None, "random", "imagenet"])
def test_first_model_of_no_file_is_ok(tmp_path: Path, word: str | None) -> None:
    assert first_model(config(tmp_path, backbone_weights=word)).verdict is Verdict.OK


@pytest.mark.parametrize("setting", ["backbone_weights", "initial_model"])
def test_first_model_of_a_file_fails_where_that_is_missing_or_closed(tmp_path: Path, file: Path, setting: str) -> None:
    option = f"--{setting.replace('_', '-')}"
    there = config(tmp_path, **{setting: str(file)})
    missing = first_model(config(tmp_path, **{setting: str(tmp_path / "none.h5")}))
    with closed(file):
        refused = first_model(there)

    assert first_model(there) == ok(f"{file} can be read")
    assert missing.found == f"{tmp_path / 'none.h5'} cannot be read (No such file or directory)"
    assert refused.found == f"{file} cannot be read (Permission denied)"
    for result in (missing, refused):
        assert (result.verdict, option in result.advice) == (Verdict.FAILED, True)


def test_first_model_that_is_made_needs_its_file_no_more(tmp_path: Path) -> None:
    task, state = Linear({}), State(tmp_path / "state")
    state.models.add(0, task.schema(), described(task.schema(), task.initial_weights(0, None)))
    state.close()

    result = first_model(config(tmp_path, initial_model=str(tmp_path / "none.npz")))

    assert result == ok("is made already; nothing is read for it any more")


def test_first_model_of_a_task_of_ones_own_may_be_named_by_another_word(tmp_path: Path) -> None:
    own = config(tmp_path, task="tests.support.tasks:Shapes", backbone_weights="ones")

    assert first_model(own).verdict is Verdict.OK


def test_client_authority_is_a_certificate_that_can_be_read(tmp_path: Path, file: Path) -> None:
    certificate = make_authority().certificate
    authority = tmp_path / "their-ca.pem"
    authority.write_bytes(certificate)

    def look(path: Path | None) -> Result:
        return client_authority(config(tmp_path, client_ca=path))

    with closed(authority):
        refused = look(authority)
    assert look(None).verdict is Verdict.OK
    assert look(authority) == ok(f"{authority} can be read, {facts_of(certificate).fingerprint}")
    assert (refused.verdict, refused.found) == (Verdict.FAILED, f"{authority} cannot be read (Permission denied)")
    assert (look(file).verdict, look(file).found) == (Verdict.FAILED, f"{file} holds no certificate")


@pytest.mark.parametrize("without", ["plaintext", "open_enrolment"])
def test_client_authority_is_no_check_where_nobody_is_asked_for_a_certificate(tmp_path: Path, without: str) -> None:
    names = [check.name for check in checks_for(config(tmp_path, **{without: True}))]

    assert "client authority" not in names
    assert "first model" in names
