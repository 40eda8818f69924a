"""`fedserver conformance` as a process, and what a client that passes looks like."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fedserver.conformance.rules import RULES
from fedserver.conformance.scenes import SCENES
from fedserver.exit_codes import ExitCode

ROOT = Path(__file__).resolve().parents[2]
LANES = "8"
"""Scenes at a time: most of a scene is waiting."""
_LONGEST_SECONDS = 870
"""On a machine with nothing else to do it takes a tenth of that."""


def started(*words: str) -> subprocess.Popen[str]:
    """The command, at work; clients are found from the checkout."""
    command = [sys.executable, "-m", "fedserver.cli", "conformance", "--lanes", LANES, *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def conformance(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    with started(*words) as process:
        try:
            output, errors = process.communicate(timeout=_LONGEST_SECONDS)
        except BaseException:
            process.terminate()  # and not kill it: it is to end its clients
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def check_passed(done: subprocess.CompletedProcess[str], does_not: Sequence[str] = ()) -> None:
    """Every rule was seen and kept, but for those of what the client does not take part in.

    `does_not` are what it does not do though it is recommended.
    """
    assert done.stdout, done.stderr[-4000:]
    found = json.loads(done.stdout)
    breaches = {f"{rule['level']} {rule['rule']}": rule["breaches"] for rule in found["rules"] if rule["breaches"]}
    assert sorted(breaches) == [f"SHOULD {rule}" for rule in does_not], breaches
    assert (found["conforms"], done.returncode) == (True, ExitCode.FINISHED)
    assert len(found["scenes"]) == len(SCENES)
    assert {rule["verdict"] for rule in found["rules"] if rule["level"] == "MUST"} <= {"holds", "spared"}
    assert len(found["rules"]) == len(RULES)
