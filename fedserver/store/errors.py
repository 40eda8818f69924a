"""What can be wrong with what is stored.

FedstreamError
├── StateError      the state directory as a whole cannot be used: in use, not writable, damaged, of a newer version
│   ├── StateInUse      another server is at it
│   ├── EarlierVersion  it is of an earlier version of this program, and is only read here
│   └── BackupAtWork    files cannot be collected while a backup copies them
└── DamagedFile     one stored file is not what it was: names the file, and the tensor where it is one
"""

from __future__ import annotations

from pathlib import Path

from fedstream.errors import FedstreamError


class StateError(FedstreamError):
    """The state directory cannot be used. The message says why and what to do."""


class StateInUse(StateError):
    """Another server is at it."""


class EarlierVersion(StateError):
    """An earlier version of this program made it. `fedserver run` converts it; whoever only reads it cannot."""


class BackupAtWork(StateError):
    """Files cannot be collected while a backup copies them."""


class DamagedFile(FedstreamError):
    """A stored file does not hold what it held when it was stored. `tensor` is empty where no single one is meant."""

    def __init__(self, path: Path, problem: str, way_out: str, tensor: str = "") -> None:
        super().__init__(f"{path} {problem}; {way_out}")
        self.path = path
        self.problem = problem
        self.tensor = tensor
