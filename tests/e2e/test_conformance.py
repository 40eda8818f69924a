"""`fedserver conformance`: own and minimal client pass, wrong ones fail by the rule they break. 4 min."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedserver.conformance.findings import Judgement, Verdict
from fedserver.conformance.material import material
from fedserver.conformance.play import Command
from fedserver.conformance.report import in_words
from fedserver.conformance.runner import conforms, judge_all, play_all
from fedserver.conformance.scenes import SCENES
from fedserver.exit_codes import ExitCode
from tests.support.conformance import check_passed, conformance, started
from tests.support.minimal.member import WRONG as WRONG_MEMBERS
from tests.support.minimal.wrong import WRONG
from tests.support.processes import until

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.slow, pytest.mark.timeout(900)]

MINIMAL = ["--server", "{server}", "--name", "{name}", "--data", "{data}", "--state", "{state}", "--out", "{out}"]
OURS = ["run", "--plaintext", "--log-json", "--no-pictures", *MINIMAL[:6], "--state-dir", "{state}", "--out", "{out}"]
MEMBER = [sys.executable, "-m", "tests.support.minimal.member"]
JOIN = ["--token", "{token}", "--identity", "{identity}"]
RUN = ["--identity", "{identity}", *MINIMAL[4:]]
LANES = 6


def test_own_client_conforms() -> None:
    command = [sys.executable, "-m", "fedclient.cli"]
    joining = shlex.join([*command, "join", *JOIN])
    member = shlex.join(
        [*command, "run", "--log-json", "--no-pictures", "--identity", "{identity}", "--data", "{data}", *OURS[-4:]]
    )
    more = ["--limited", "--max-epochs 1", "--join", joining, "--member", member]
    check_passed(conformance("--json", *more, "--", *command, *OURS))


def test_minimal_client_conforms() -> None:
    client = [sys.executable, "-m", "tests.support.minimal.client", *MINIMAL]
    more = ["--join", shlex.join([*MEMBER, "join", *JOIN]), "--member", shlex.join([*MEMBER, "run", *RUN])]
    check_passed(conformance("--json", "--task", "linear", *more, "--", *client), does_not=["R-JOIN-6"])


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[list[Judgement], bool, str]]:
    """What was found of each wrong client: judgements, whether it passed, and the words. Played at the same time."""
    folder = tmp_path_factory.mktemp("wrong")
    played_with = material("linear")
    lane = asyncio.Semaphore(LANES)

    async def one(number: int, name: str) -> tuple[str, tuple[list[Judgement], bool, str]]:
        words = [sys.executable, "-m", "tests.support.minimal.wrong", *MINIMAL, "--wrong", name]
        scenes = [scene for scene in SCENES if WRONG[name].scene in scene.name]
        async with lane:
            results = await play_all(scenes, Command(words), played_with, folder / str(number), 1, lambda _: None)
        found = judge_all(scenes, results)
        passed = conforms(found, results, all_played=False)
        return name, (found, passed, in_words(found, results, passed=passed, all_played=False))

    async def all_of_them() -> Mapping[str, tuple[list[Judgement], bool, str]]:
        return dict(await asyncio.gather(*(one(number, name) for number, name in enumerate(WRONG))))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_client_fails_by_the_rule_that_it_breaks(
    judged: Mapping[str, tuple[list[Judgement], bool, str]], name: str
) -> None:
    found, passed, words = judged[name]
    broken = {one.rule.name for one in found if one.verdict is Verdict.BROKEN}
    assert not passed
    assert WRONG[name].rule in broken, words


@pytest.mark.parametrize("name", WRONG_MEMBERS)
def test_wrong_member_fails_by_the_rule_that_it_breaks(name: str) -> None:
    rule, scene = WRONG_MEMBERS[name]
    wrong = ["--wrong", name]
    join, member = shlex.join([*MEMBER, "join", *JOIN, *wrong]), shlex.join([*MEMBER, "run", *RUN, *wrong])
    words = ["--json", "--task", "linear", "--only", scene, "--join", join, "--member", member]
    done = conformance(*words, "--", *MEMBER)
    broken = {one["rule"] for one in json.loads(done.stdout)["rules"] if one["breaches"]}
    assert done.returncode == ExitCode.FAILED
    assert rule in broken


def test_client_that_does_not_start_says_why() -> None:
    done = conformance("--only", "three rounds", "--", "no-such-program", "{server}")
    assert (done.returncode, "no-such-program cannot be started" in done.stderr) == (ExitCode.BAD_CONFIGURATION, True)


def test_client_that_ends_at_once_fails_with_its_last_words() -> None:
    client = [sys.executable, "-c", "raise SystemExit('no data here')"]
    done = conformance("--only", "three rounds", "--", *client)
    assert done.returncode == ExitCode.FAILED
    assert "no data here" in done.stdout


def test_clients_end_with_the_command_that_is_told_to_end(tmp_path: Path) -> None:
    client = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    noted = tmp_path / "client.pid"
    with started("--only", "three rounds", "--", sys.executable, "-c", client, str(noted)) as process:
        until("a client", lambda: noted.is_file() and noted.read_text())
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)


def test_placeholder_that_there_is_not_is_named() -> None:
    done = conformance("--only", "three rounds", "--", "client", "{port}")
    assert (done.returncode, "{server}" in done.stderr) == (ExitCode.BAD_CONFIGURATION, True)
