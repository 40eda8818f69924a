"""How the server's process is set up: its heaps, how often cycles are looked for, and how threads take turns.

glibc is asked for what only it has; with another C library these things are left as they are.
"""

from __future__ import annotations

import ctypes
import gc
import sys

_C_LIBRARY = ctypes.CDLL(None)
_M_ARENA_MAX = -8  # of glibc's malloc.h
_ARENAS = 2
_NEW_OBJECTS = 20_000
_TURN_SECONDS = 0.0005


def keep_few_heaps() -> bool:
    """Let all threads share two heaps; returns whether the C library can be told so. To be called before threads start.

    glibc gives each thread that allocates a heap of its own, up to 8 a core, and what is freed in one stays with it: of
    8 updates of 100 MiB, in chunks of 1 MiB, 42 MiB more stayed resident with many heaps than with two. The time was
    the same, since most of what allocates here holds the interpreter lock.
    """
    mallopt = getattr(_C_LIBRARY, "mallopt", None)
    return mallopt is not None and mallopt(_M_ARENA_MAX, _ARENAS) == 1


def give_back_freed_memory() -> None:
    """Let the system have the pages that were freed and that the C library keeps; some milliseconds, in any thread.

    It keeps the room of those between pieces that are still in use: of 32 uploads at once, as much again as they had in
    memory.
    """
    malloc_trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


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
