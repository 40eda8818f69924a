"""Commands whose output is closed from the start, or cannot write what is to be said. 3 s."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FULL = Path("/dev/full")
SAY = "from fedstream.output import open_output; open_output(); print('scans in m\\u00fc'); "
SAY += "import sys; print('no', file=sys.stderr)"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_output_is_no_error(closed: str) -> None:
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "$0" {closed}', SAY], check=False, capture_output=True)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


def test_closed_descriptors_are_given_to_no_file() -> None:
    look = "from fedstream.output import open_output; open_output(); import os, sys; from pathlib import Path; "
    look += "file = open(sys.argv[1], 'w'); "
    look += "file.write(repr((file.fileno() > 2, *(os.path.samestat(os.fstat(each), os.stat(os.devnull)) "
    look += "and os.get_inheritable(each) for each in range(3)))))"
    with tempfile.NamedTemporaryFile("r") as found:
        words = ["sh", "-c", f'"{sys.executable}" -c "$0" "$1" <&- >&- 2>&-', look, found.name]
        done = subprocess.run(words, check=False)
        assert (done.returncode, found.read()) == (0, "(True, True, True, True)")


def test_letters_that_the_terminal_cannot_write_are_written_by_number() -> None:
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", SAY], check=True, capture_output=True, env=ascii_only)
    assert done.stdout == b"scans in m\\xfc\n"


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("words", [["fedserver.cli", "run", "--help"], ["fedclient.cli", "--help"]])
def test_full_output_is_told_in_a_sentence(words: list[str]) -> None:
    command, name = [sys.executable, "-m", *words], words[0].removesuffix(".cli")
    with FULL.open("w", encoding="utf-8") as full:
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    said = f"{name}: what it had to say could not be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)
