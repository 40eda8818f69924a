"""Commands whose output is closed from the start, or cannot write what is to be said. 3 s."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SAY = "from fedstream.output import open_output; open_output(); print('scans in m\\u00fc'); "
SAY += "import sys; print('no', file=sys.stderr)"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_output_is_no_error(closed: str) -> None:
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "$0" {closed}', SAY], check=False, capture_output=True)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


def test_letters_that_the_terminal_cannot_write_are_written_by_number() -> None:
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", SAY], check=True, capture_output=True, env=ascii_only)
    assert done.stdout == b"scans in m\\xfc\n"
