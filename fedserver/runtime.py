"""How the server's process is set up: how often cycles are looked for, and how threads take turns."""

from __future__ import annotations

import gc
import sys

_NEW_OBJECTS = 20_000
_TURN_SECONDS = 0.0005


def collect_cycles_seldom() -> None:
    """Look for cycles of objects less often, and not among those that are there now, modules and the like.

    A thousand connected sites are a million objects, nearly all of which are let go without being looked for. With
    Python's thresholds the search took about a twentieth of a round with a thousand small updates, by a profile.
    """
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


def take_short_turns() -> None:
    """Let a thread that needs the interpreter have it after half a millisecond, and not after Python's five.

    A thread that writes or syncs lets go of it, and must have it back to say that it is done. Beside threads that look
    at updates, it waited for that several times as long as it had written.
    """
    sys.setswitchinterval(_TURN_SECONDS)
