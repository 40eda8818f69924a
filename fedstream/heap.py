"""What a process does with memory that it has freed. glibc is asked for what only it has; with another C library these
things stay as they are.
"""

from __future__ import annotations

import ctypes

_C_LIBRARY = ctypes.CDLL(None)

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

_ARENAS = 2
_KEPT_BYTES = 16 << 20
_LARGE_BYTES = 8 << 20


def keep_few_heaps() -> bool:
    """Let all threads share two heaps; returns whether the C library can be told so. To be called before threads start.

    glibc gives each thread that allocates a heap of its own, up to 8 a core, and what is freed in one stays with it: of
    8 updates of 100 MiB, in chunks of 1 MiB, 42 MiB more stayed resident in a server with many heaps than with two. The
    time was the same, since most of what allocates here holds the interpreter lock.
    """
    return _told({_M_ARENA_MAX: _ARENAS})


def keep_freed_memory() -> bool:
    """Use the memory of one chunk for the next; returns whether the C library can be told so.

    glibc gives pages of a megabyte back as soon as they are freed, and the next megabyte is new pages, which the kernel
    has to find and clear: in a client that receives and sends 100 MiB, that was a fifth of its processor time. Up to 16
    MiB at the end of a heap stay, and what is larger than 8 MiB still goes back at once.
    """
    return _told({_M_MMAP_THRESHOLD: _LARGE_BYTES, _M_TRIM_THRESHOLD: _KEPT_BYTES})


def give_back_freed_memory() -> None:
    """Let the system have the pages that were freed and that the C library keeps; some milliseconds, in any thread.

    It keeps the room of those between pieces that are still in use: of 32 uploads at once, as much again as they had in
    memory.
    """
    malloc_trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def _told(settings: dict[int, int]) -> bool:
    mallopt = getattr(_C_LIBRARY, "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in settings.items())
