"""What a site's operator sees in a terminal, by what rich writes to one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios

import pytest

TRAINING = """
import time
from fedstream.progress import Phase, Progress
from fedclient.display import TerminalDisplay

display = TerminalDisplay()
metrics = {"loss": 0.0612, "accuracy": 0.9812, "val_loss": 0.1122, "val_accuracy": 0.97}
display.show(12, Progress(Phase.TRAINING, fraction=0.4, epoch=10, epochs=10, metrics=metrics))
time.sleep(0.5)
display.close()
"""


def shown_in(columns: int, program: str) -> str:
    """All that a program writes to a terminal of so many columns, without what moves the cursor or colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=environment) as running:
        os.close(theirs)
        written, waiting = b"", select.poll()
        waiting.register(ours, select.POLLIN)
        while waiting.poll(20_000):
            try:
                written += os.read(ours, 1 << 16)
            except OSError:  # what Linux says when the other end is closed
                break
    os.close(ours)
    assert running.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())


@pytest.mark.parametrize(
    ("columns", "figures"),
    [
        (60, "loss 0.0612"),
        (80, "loss 0.0612, accuracy 0.9812"),
        (120, "loss 0.0612, accuracy 0.9812, val_loss 0.1122, val_accuracy 0.9700"),
    ],
)
def test_line_of_a_training_fits_its_terminal(columns: int, figures: str) -> None:
    lines = shown_in(columns, TRAINING).replace("\r", "\n").splitlines()
    line = next(line for line in lines if "epoch" in line)
    words, rest = line.split(" ━", maxsplit=1)
    assert words == "round 12 · epoch 10/10"
    assert rest.lstrip("━╸╺ ").startswith(f"{figures} 0:00:0")
    assert len(line) <= columns
