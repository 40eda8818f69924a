"""The picture of a client's training history, drawn from its CSV file by a process of its own.

    python -m fedtask.history_picture CSV PNG TITLE NICENESS

The worker does one call at a time, and the next fine-tune would wait for a picture that is drawn there. A process more
costs the import of matplotlib every time, but runs beside a fine-tune, and at a low priority.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from fedtask.history import read_csv

_NICENESS = 10
"""Added to the process's where nobody waits for the picture: all of a core that is idle, a tenth of one that is not.
With 19, the most there is, a picture on a machine whose cores all train would take minutes."""


class DrawingFailed(Exception):
    """The picture could not be drawn. The message has the drawing process's last words."""


async def draw(table: Path, png: Path, title: str, *, hurry: bool) -> None:
    """Draw the CSV file `table` as `png`, in another process, which is ended if this is cancelled.

    With `hurry` it runs at this process's own priority.

    Raises:
        DrawingFailed: there is no picture, or it is an old one.
    """
    niceness = 0 if hurry else _NICENESS
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fedtask.history_picture", str(table), str(png), title, str(niceness)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is for the parent, which waits for the last picture
    )
    try:
        _, words = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        last = words.decode(errors="replace").strip().rpartition("\n")[2]
        raise DrawingFailed(f"drawing {png.name} ended with status {process.returncode}: {last or 'it said nothing'}")


def main() -> None:
    """Draw one picture; arguments as in the module's docstring."""
    os.nice(int(sys.argv[4]))
    from fedtask import plots  # matplotlib takes a second to import: not at the priority of whoever asked

    table, png, title = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    partial = png.with_suffix(f".partial{png.suffix}")  # the end decides on the format
    plots.training_history(read_csv(table), partial, title)
    partial.replace(png)


if __name__ == "__main__":
    main()
