"""How much of one upload may be in flight, so that all uploads of a round together stay within a budget.

What is in flight may all be in this process's memory at once: gRPC buffers what the disk does not take yet. A few sites
have the whole window each, which a far, fast link needs; of many, each has its share.
"""

from __future__ import annotations

from fedstream import limits

BUDGET_BYTES = 32 << 20
"""For all uploads of a round: eight whole windows."""

MIN_WINDOW_BYTES = 256 << 10
"""A smaller one would cost an fsync for every few kilobytes. Beyond 128 sites the budget is exceeded, by this each."""

_STEP_BYTES = 4096


def window_of(num_uploads: int) -> int:
    """Bytes in flight that one of so many uploads may have.

    It depends on nothing else: a server that was started again must commit at the half of what the client was told.
    """
    share = BUDGET_BYTES // max(1, num_uploads) // _STEP_BYTES * _STEP_BYTES
    return max(MIN_WINDOW_BYTES, min(share, limits.WINDOW_BYTES))
