"""What is said of a further authority that cannot be used. A moment."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from fedserver.clock import SystemClock
from fedserver.config import ServerConfig
from fedserver.gate import Gate, kept_client_ca
from fedserver.store import State
from fedstream.certificates import make_key

pytestmark = pytest.mark.numpy_task


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        (None, "cannot be read (No such file or directory); name a file that the user of the server may read"),
        (b"no PEM", "holds no certificate; name that of the authority, in PEM"),
        (make_key(), "holds no certificate; name that of the authority, in PEM"),
    ],
)
def test_further_authority_that_cannot_be_used_is_refused_by_its_option(
    tmp_path: Path, contents: bytes | None, problem: str
) -> None:
    path = tmp_path / "their-ca.pem"
    if contents is not None:
        path.write_bytes(contents)
    config = ServerConfig(state=tmp_path / "state", client_ca=path)
    with closing(State(config.state)) as state:
        with pytest.raises(ValueError, match=re.escape(f"--client-ca {path} {problem}")):
            Gate.open(config, state, SystemClock())
        assert kept_client_ca(state.database) is None
