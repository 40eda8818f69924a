"""What whoever started a process has decided about its signals."""

from __future__ import annotations

import signal


def is_heeded(number: signal.Signals) -> bool:
    """Whether it is not ignored already, as `nohup` has a hang-up ignored: that is to stay so."""
    return signal.getsignal(number) is not signal.SIG_IGN
