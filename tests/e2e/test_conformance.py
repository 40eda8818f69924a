"""`fedserver conformance`: own and minimal client pass, wrong ones fail by the rule they break. 4 min."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedserver.conformance.findings import Judgement, Verdict
from fedserver.conformance.material import material
from fedserver.conformance.play import Command
from fedserver.conformance.report import in_words
from fedserver.conformance.rules import RULES
from fedserver.conformance.runner import conforms, judge_all, play_all
from fedserver.conformance.scenes import SCENES
from fedserver.exit_codes import ExitCode
from tests.support.minimal.wrong import WRONG

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.slow, pytest.mark.timeout(500)]

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = ["--server", "{server}", "--name", "{name}", "--data", "{data}", "--state", "{state}", "--out", "{out}"]
OURS = ["run", "--plaintext", "--log-json", *MINIMAL[:6], "--state-dir", "{state}", "--out", "{out}"]
LANES = 6


def conformance(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedserver.cli", "conformance", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=480)


def check_passed(done: subprocess.CompletedProcess[str]) -> None:
    """Every rule was seen and kept, but for those of what the client does not take part in."""
    assert done.returncode == ExitCode.FINISHED, done.stderr[-4000:] + done.stdout[-4000:]
    found = json.loads(done.stdout)
    assert found["conforms"]
    assert len(found["scenes"]) == len(SCENES)
    assert {rule["verdict"] for rule in found["rules"] if rule["level"] == "MUST"} <= {"holds", "spared"}
    assert len(found["rules"]) == len(RULES)


def test_own_client_conforms() -> None:
    client = [sys.executable, "-m", "fedclient.cli", *OURS]
    check_passed(conformance("--json", "--lanes", str(LANES), "--limited", "--max-epochs 1", "--", *client))


def test_minimal_client_conforms() -> None:
    client = [sys.executable, "-m", "tests.support.minimal.client", *MINIMAL]
    check_passed(conformance("--json", "--lanes", str(LANES), "--task", "linear", "--", *client))


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


def test_client_that_does_not_start_says_why() -> None:
    done = conformance("--only", "two rounds", "--", "no-such-program", "{server}")
    assert (done.returncode, "no-such-program cannot be started" in done.stderr) == (ExitCode.BAD_CONFIGURATION, True)


def test_client_that_ends_at_once_fails_with_its_last_words() -> None:
    client = [sys.executable, "-c", "raise SystemExit('no data here')"]
    done = conformance("--only", "two rounds", "--", *client)
    assert done.returncode == ExitCode.FAILED
    assert "no data here" in done.stdout


def test_placeholder_that_there_is_not_is_named() -> None:
    done = conformance("--only", "two rounds", "--", "client", "{port}")
    assert (done.returncode, "{server}" in done.stderr) == (ExitCode.BAD_CONFIGURATION, True)
