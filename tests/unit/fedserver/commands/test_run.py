"""What `fedserver run` says at its end. A moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog

from fedserver.commands.run import _ended, announce, join_command
from fedserver.config import ServerConfig
from fedserver.doctor.network import names
from fedserver.exit_codes import ExitCode
from fedserver.results import Made
from fedserver.server import Listening


@pytest.mark.parametrize("rounds", [True, False])
def test_end_without_its_files_says_that_another_start_makes_them_where_it_does(*, rounds: bool) -> None:
    with structlog.testing.capture_logs() as logs:
        assert _ended("all 3 rounds done", Made(models=Path("models"), test=True, rounds=rounds)) == ExitCode.FAILED
    (entry,) = logs
    again = "mend it and start the server again with the same --state"
    assert (entry["hint"].startswith(again), "`fedserver export`" in entry["hint"]) == (rounds, True)


@pytest.mark.parametrize(
    ("listen", "beyond"),
    [("127.0.0.1:8443", "0.0.0.0:8443"), ("localhost:1", "0.0.0.0:1"), ("[::1]:8443", "[::]:8443")],
)
def test_address_that_other_machines_reach_is_advised_of_the_same_family(listen: str, beyond: str) -> None:
    config = ServerConfig(listen=listen)
    assert names(config).advice == f"For sites elsewhere, add --listen {beyond}"
    words = join_command(config, Listening(listen, "sha256:", "unix:x", listen))
    assert words.replace("'", "").endswith(f"add --listen {beyond}")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "No --holdout was given: global models are not scored.\n"),
        (
            {"early_stopping_rounds": 3},
            (
                "No --holdout was given: global models are not scored, and --early-stopping-rounds, which goes by the "
                "scores, never ends the federation.\n"
            ),
        ),
        ({"early_stopping_rounds": 3, "holdout": "phantom"}, ""),
    ],
)
def test_start_says_what_has_no_effect_without_a_holdout(
    settings: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    announce(ServerConfig(**settings), Listening("127.0.0.1:8443", None, "unix:x"))
    said = capsys.readouterr().err
    assert (words in said, "not scored" in said) == (True, bool(words))
