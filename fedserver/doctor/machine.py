"""Memory and open files."""

from __future__ import annotations

import resource

from fedserver.config import ServerConfig
from fedserver.open_files import MOST
from fedstream.checkup.machine import GB, available_memory, judge_memory
from fedstream.checkup.runner import Result, ok, warning

_WORKING_BYTES = 2 * GB
"""The server with a model of some 10 MB takes 0.2 GB, and its worker with tensorflow, which scores models, 1.6 GB."""

_FEW_FILES = 1_024
_FILES_PER_SITE = 2
"""One connection, and one file while it fetches or sends."""


def memory(_config: ServerConfig) -> Result:
    """There is memory for rounds and scores."""
    return judge_memory(_WORKING_BYTES, "a server that scores models", available_memory())


def open_files(_config: ServerConfig) -> Result:
    """How many sites the limit of open files has room for; the server raises its own as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(MOST, hard)
    found = f"{most} files, enough for some {most // _FILES_PER_SITE} sites"
    if most < _FEW_FILES:
        return warning(found, "Raise the limit: LimitNOFILE in the systemd unit, or `ulimit -Hn` in a shell")
    return ok(found)
