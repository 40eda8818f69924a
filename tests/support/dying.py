"""A client that is killed at one place of its end, by itself and with SIGKILL, so that the place is always the same.

Run by its path, it is the `fedclient` command: `dying.py PLACE run OPTION...`. Nothing of `tests` is imported here.
"""

from __future__ import annotations

import os
import signal
import sys
from unittest import mock

from fedclient import cli, final_models
from fedclient.client import Client
from fedclient.ending import EndingNote
from fedclient.session import Session
from fedclient.workplace import Workplace

PLACES = {
    "end heard": (EndingNote, "write"),
    "end noted": (final_models, "fetch_models"),
    "models fetched": (Session, "_close"),
    "server told": (Workplace, "settle"),
    "models saved": (Client, "_note_saved"),
    "saving noted": (Workplace, "forget_weights"),
    "weights forgotten": (Workplace, "close"),
}
"""What a client has just done when it dies, and what it was about to do."""


def _die(*_arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Take part, up to that place."""
    owner, name = PLACES[sys.argv.pop(1)]
    with mock.patch.object(owner, name, _die):
        cli.main()


if __name__ == "__main__":
    main()
