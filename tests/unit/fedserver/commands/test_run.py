"""What `fedserver run` says at its end. A moment."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from fedserver.commands.run import _ended
from fedserver.exit_codes import ExitCode
from fedserver.results import Made


@pytest.mark.parametrize("rounds", [True, False])
def test_end_without_its_files_says_that_another_start_makes_them_where_it_does(*, rounds: bool) -> None:
    with structlog.testing.capture_logs() as logs:
        assert _ended("all 3 rounds done", Made(models=Path("models"), test=True, rounds=rounds)) == ExitCode.FAILED
    (entry,) = logs
    again = "mend it and start the server again with the same --state"
    assert (entry["hint"].startswith(again), "`fedserver export`" in entry["hint"]) == (rounds, True)
