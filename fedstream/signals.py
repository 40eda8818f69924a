"""What those who run a process decide about its signals: when they start it, and when they have asked it to end."""

from __future__ import annotations

import asyncio
import signal


def is_heeded(number: signal.Signals) -> bool:
    """Whether it is not ignored already, as `nohup` has a hang-up ignored: that is to stay so."""
    return signal.getsignal(number) is not signal.SIG_IGN


def end_at_once_from_now_on() -> None:
    """Let the next SIGINT or SIGTERM end the process, whichever asked it to end in good order: somebody is in a hurry.

    No code of ours is asked then, whatever that is busy with. On the running event loop, which had handlers for both.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
