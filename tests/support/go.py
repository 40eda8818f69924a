"""The client in Go, for tests that skip where Go or the client's modules are not there."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

import pytest
from filelock import FileLock

from tests.support.foreign import CLIENTS, ForeignClient

FOLDER = CLIENTS / "go"

_BUILT = FOLDER / "build"
_CLIENT, _SLOW = _BUILT / "fedstream-client", _BUILT / "slow-client"
_BUILD_SECONDS = 600.0
"""gRPC and its parts are compiled once on a machine, in up to 2 minutes; after that a build takes a second or two."""


def missing() -> str:
    """Why the client cannot run here; empty if it can."""
    return "" if shutil.which("go") else "go is not on the PATH"


@cache
def build() -> None:
    """Build the client as its README says, and the one whose training waits, once for each process."""
    _BUILT.mkdir(exist_ok=True)
    with FileLock(_BUILT / "lock", timeout=_BUILD_SECONDS):  # the tests' workers share the folder
        modules = _go("mod", "download")
        if modules.returncode:
            pytest.skip(f"the modules of clients/go cannot be had: {modules.stderr.strip().splitlines()[-1]}")
        for words in (["generate", "./..."], ["build", "-o", f"{_BUILT}/", "./cmd/...", "./test/..."]):
            done = _go(*words)
            assert done.returncode == 0, f"go {' '.join(words)} failed:\n{done.stderr}"


def _go(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["go", *words],
        cwd=FOLDER,
        env={**os.environ, "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )


GO = ForeignClient(
    language="go",
    folder=FOLDER,
    missing=missing,
    build=build,
    run=[str(_CLIENT), "run"],
    slow=[str(_SLOW), "run"],
    own_tests=[
        ["sh", "-c", 'unformatted=$(gofmt -l .); echo "$unformatted"; test -z "$unformatted"'],
        ["go", "vet", "./..."],
        ["go", "test", "-vet=off", "./..."],
    ],
    join=[str(_CLIENT), "join"],
)
