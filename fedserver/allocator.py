"""How memory is managed in the server's process: how many heaps there are, and how often cycles are looked for."""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8  # of glibc's malloc.h
_ARENAS = 2
_NEW_OBJECTS = 20_000


def keep_few_heaps() -> bool:
    """Let all threads share two heaps; returns whether the C library can be told so. To be called before threads start.

    glibc gives each thread that allocates a heap of its own, up to 8 a core, and what is freed in one stays with it: of
    8 updates of 100 MiB, in chunks of 1 MiB, 42 MiB more stayed resident with many heaps than with two. The time was
    the same, since most of what allocates here holds the interpreter lock.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library has its own ways
    return mallopt is not None and mallopt(_M_ARENA_MAX, _ARENAS) == 1


def collect_cycles_seldom() -> None:
    """Look for cycles of objects less often, and not among those that are there now, modules and the like.

    A thousand connected sites are a million objects, nearly all of which are let go without being looked for. With
    Python's thresholds the search took a tenth of the time of a round with a thousand small updates.
    """
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
