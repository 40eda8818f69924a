"""How many files and sockets the process may have open."""

from __future__ import annotations

import contextlib
import resource

MOST = 65_536
"""Enough for any server in Python; beyond it, a limit only keeps a leak from being seen."""


def allow_many_open_files() -> int:
    """Raise the limit to what the system lets a process have, up to `MOST`; returns what it is then.

    A connected site takes one, and another while it fetches or sends: with the 1,024 that Linux gives a process until
    it asks, a round of a thousand sites ends with models and updates that cannot be opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(MOST, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # macOS says no limit, and means one of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
