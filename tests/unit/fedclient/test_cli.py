"""The `fedclient` command as a person or a service meets it: help, speed, exit codes, signals."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedclient import cli
from fedclient.config import ClientConfig
from fedclient.exit_codes import ExitCode
from fedstream.manifest import Digest
from fedstream.weights_file import WeightsFile
from tests.support.joining import joined
from tests.support.scripted import SETTINGS, Model, Scripted, Talk, linear_model, scripted
from tests.support.serving import serving

pytestmark = pytest.mark.numpy_task

COMMAND = [sys.executable, "-m", "fedclient.cli"]


def call(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], check=False, capture_output=True, text=True, cwd=cwd, timeout=60)


async def begin(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdout=pipe, stderr=pipe)


def at(server: str, folder: Path, *more: str) -> Sequence[str]:
    return (
        "run",
        "--server",
        server,
        "--data",
        "phantom",
        "--out",
        f"{folder}/out",
        "--state-dir",
        f"{folder}/st",
        *more,
    )


def test_help_names_every_setting_every_exit_code_and_an_example() -> None:
    text = " ".join(call("run", "--help").stdout.split())

    assert "Example: fedclient run --data scans/" in text
    assert [name for name in ClientConfig.model_fields if f"--{name.replace('_', '-')} " not in text] == []
    assert [code for code in ExitCode if f"{code.value} {code.meaning}" not in text] == []


def test_help_lists_the_commands() -> None:
    lines = call("--help").stdout.splitlines()
    commands = lines[lines.index("Commands:") + 1 :]

    names = ["run", "join", "predict", "features", "doctor", "preview"]
    assert [line.split()[0] for line in commands if re.match(r"  \S", line)] == names


def test_help_loads_nothing_heavy() -> None:  # how quick it is, `make bench ONLY=start` says
    code = (
        "import sys, fedclient.cli;"
        "print(*sorted({'grpc', 'numpy', 'pydantic', 'tensorflow', 'rich', 'structlog'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert loaded == ""


def test_command_leaves_the_lines_of_grpc_out_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fedclient", "--version"])
    for given, wanted in ((None, "NONE"), ("debug", "debug")):
        monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
        if given is not None:
            monkeypatch.setenv("GRPC_VERBOSITY", given)
        with pytest.raises(SystemExit):
            cli.main()
        assert os.environ["GRPC_VERBOSITY"] == wanted


def test_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r"fedclient \d+\.\d+\.\d+\S*\n", call("--version").stdout)


def test_run_without_settings_says_what_is_missing_and_exits_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # who tries the tests may be a site
    result = call("run")

    assert (result.returncode, result.stdout) == (ExitCode.BAD_CONFIGURATION, "")
    assert result.stderr.startswith(
        "fedclient: this site has not joined: run `fedclient join` with the coordinator's token"
    )


@pytest.mark.parametrize("program", ["fedclient.cli", "fedserver.cli"])
def test_run_with_an_unknown_log_level_names_those_there_are_and_exits_2(program: str) -> None:
    words = [sys.executable, "-m", program, "run", "--log-level", "shout"]
    result = subprocess.run(words, check=False, capture_output=True, text=True)

    assert (result.returncode, result.stdout) == (2, "")
    assert "'shout' is not one of 'debug', 'info', 'warning', 'error'" in result.stderr


async def test_run_with_wrong_fingerprint_exits_6_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, listening):
        process = await begin(*at(listening.address, tmp_path, "--fingerprint", "sha256:" + "0" * 64))
        _, errors = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == ExitCode.UNTRUSTED
    assert b"it is another server, or somebody is in between" in errors


async def test_run_with_unusable_data_exits_3_and_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    async with scripted() as server:
        arguments = at(server.address, tmp_path, "--plaintext", "--data", f"{tmp_path}/none")
        process = await begin(*arguments)
        _, errors = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == ExitCode.BAD_DATA
    assert f"{tmp_path}/none" in errors.decode()


@pytest.mark.parametrize("name", ["none", "site.features", "v1.2"])
async def test_run_with_data_that_is_not_there_exits_3_and_asks_no_server(tmp_path: Path, name: str) -> None:
    process = await begin(*at("127.0.0.1:9", tmp_path, "--plaintext", "--data", f"{tmp_path}/{name}"))
    _, errors = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == ExitCode.BAD_DATA
    last = errors.decode().splitlines()[-1]
    assert last.startswith(f"fedclient: there is no file or folder {tmp_path}/{name} (looked from ")
    assert last.endswith("; give the folder that holds train/, the file that the task reads, or `phantom`, as --data")
    assert "connecting" not in errors.decode()


def endless(base: list[Digest], training: asyncio.Event, left: list[str]) -> Callable[[Talk], Awaitable[None]]:
    """A round of so many epochs that its site is stopped in it: tells when it trains, and why it leaves."""

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await talk.agree(base[0], epochs=1000)
        await talk.hear("progress")
        training.set()
        left.append((await talk.hear("leave")).reason)

    return script


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, ExitCode.INTERRUPTED),
        (signal.SIGTERM, ExitCode.TERMINATED),
        (signal.SIGHUP, ExitCode.HUNG_UP),
    ],
)
async def test_run_stopped_by_a_signal_leaves_cleanly(tmp_path: Path, number: signal.Signals, code: ExitCode) -> None:
    base: list[Digest] = []
    left: list[str] = []
    training = asyncio.Event()
    async with scripted(endless(base, training, left)) as server:
        base.append(server.base)
        process = await begin(*at(server.address, tmp_path, "--plaintext", "--name", "site"))
        await asyncio.wait_for(training.wait(), 20)
        process.send_signal(number)
        _, errors = await asyncio.wait_for(process.communicate(), 20)

    assert (process.returncode, left) == (code, ["stopped by its operator"])
    assert b"Traceback" not in errors
    assert code.meaning in errors.decode()


async def test_run_whose_terminal_is_closed_leaves_cleanly_though_it_hears_of_it_twice(tmp_path: Path) -> None:
    base: list[Digest] = []
    left: list[str] = []
    training = asyncio.Event()
    near, far = os.openpty()  # the process is the leader of the session whose terminal that is
    async with scripted(endless(base, training, left)) as server:
        base.append(server.base)
        command = [*COMMAND, *at(server.address, tmp_path, "--plaintext", "--name", "site")]
        process = await asyncio.create_subprocess_exec(*command, preexec_fn=partial(os.login_tty, far))
        os.close(far)
        loop = asyncio.get_running_loop()
        loop.add_reader(near, os.read, near, 65536)  # or what it says would wait for that
        await asyncio.wait_for(training.wait(), 20)
        loop.remove_reader(near)
        os.close(near)
        process.send_signal(signal.SIGHUP)  # from the shell; the system has sent one as well
        status = await asyncio.wait_for(process.wait(), 20)

    assert (status, left) == (ExitCode.HUNG_UP, ["stopped by its operator"])


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_second_signal_ends_a_run_whose_good_bye_is_not_answered(tmp_path: Path, first: signal.Signals) -> None:
    here: list[Scripted] = []
    training, leaving = asyncio.Event(), asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await talk.agree(here[0].base, epochs=1000)
        await talk.hear("progress")
        training.set()
        await talk.hear("leave")
        leaving.set()
        await asyncio.sleep(60)

    async with scripted(script) as server:
        here.append(server)
        process = await begin(*at(server.address, tmp_path, "--plaintext", "--name", "site"))
        await asyncio.wait_for(training.wait(), 20)
        process.send_signal(first)
        await asyncio.wait_for(leaving.wait(), 20)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == -signal.SIGINT


async def test_run_with_hang_ups_ignored_goes_on_after_one(tmp_path: Path) -> None:
    base: list[Digest] = []
    left: list[str] = []
    training = asyncio.Event()
    async with scripted(endless(base, training, left)) as server:
        base.append(server.base)
        options = at(server.address, tmp_path, "--plaintext", "--name", "site")
        process = await asyncio.create_subprocess_exec("nohup", *COMMAND, *options, stderr=asyncio.subprocess.DEVNULL)
        await asyncio.wait_for(training.wait(), 20)
        process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == ExitCode.TERMINATED


async def test_run_stopped_while_it_reads_its_data_ends_at_once(tmp_path: Path) -> None:
    async with scripted() as server:
        server.negotiation.task = "tests.support.tasks:Slow"
        options = ("--plaintext", "--task", "tests.support.tasks:Slow", "--log-level", "debug")
        process = await begin(*at(server.address, tmp_path, *options))
        assert process.stderr is not None
        while b"reading the data" not in await asyncio.wait_for(process.stderr.readline(), 20):
            pass
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 10)

    assert process.returncode == ExitCode.TERMINATED


async def test_run_stopped_in_a_later_round_leaves_model_and_picture_of_the_last_that_was_trained(
    tmp_path: Path,
) -> None:
    training = asyncio.Event()
    bases: list[Digest] = []

    async def script(talk: Talk) -> None:
        await talk.welcome()
        for number, base in enumerate(bases, start=1):  # both within the pause between two pictures
            await talk.agree(base, number)
            while not is_delivered(server, number):  # noqa: ASYNC110 - the server of the test knows of no event
                await asyncio.sleep(0.01)
        await talk.agree(bases[0], number=3, epochs=1000)
        await talk.hear("progress")
        training.set()
        await talk.hear("leave")

    async with scripted(script) as server:
        _, other = linear_model(SETTINGS, seed=5)
        bases += [server.base, server.transfer.publish(other)]
        process = await begin(*at(server.address, tmp_path, "--plaintext", "--name", "site"))
        await asyncio.wait_for(training.wait(), 20)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == ExitCode.TERMINATED
    check_kept(tmp_path / "out", other)


def is_delivered(server: Scripted, number: int) -> bool:
    upload = server.transfer.uploads.get(f"upload-{number}")
    return upload is not None and upload.finished


def check_kept(out: Path, base: Model) -> None:
    """The model is the one that was trained from `base`, and the picture is not older than the table of two rounds."""
    table, picture = (out / f"client_site_training_history.{kind}" for kind in ("csv", "png"))
    assert [line.split(",")[:2] for line in table.read_text().splitlines()[1:]] == [
        ["1", "1"],
        ["1", "2"],
        ["2", "1"],
        ["2", "2"],
    ]
    assert picture.stat().st_mtime_ns >= table.stat().st_mtime_ns
    entry, values = next((e, v) for e, v in zip(base.manifest, base.values, strict=True) if e.name == "further_00000")
    trained = WeightsFile(out / "client_site_model.safetensors").array(entry.name)
    moved = trained - np.frombuffer(values, np.float32)
    assert np.ptp(moved) < 1e-5 < abs(moved).min()  # the numpy task moves all of such a tensor by one number


async def test_run_of_two_clients_over_tls_ends_with_the_same_model_and_exit_code_0(tmp_path: Path) -> None:
    async with serving(tmp_path / "server", rounds=2, holdout="phantom") as (_, listening):
        assert listening.enrolment_address is not None
        processes = []
        for name, shard in (("a", "0/2"), ("b", "1/2")):
            identity = await joined(listening.admin_address, listening.enrolment_address, name)
            words = at(listening.address, tmp_path / name, "--identity", str(identity.folder))
            processes.append(await begin(*words, "--shard", shard, "--log-json"))
        outputs = await asyncio.wait_for(asyncio.gather(*(process.communicate() for process in processes)), 60)

    assert [process.returncode for process in processes] == [ExitCode.FINISHED] * 2, outputs
    assert all(output.startswith(b"federation finished: all 2 rounds done\n") for output, _ in outputs)
    models = [(tmp_path / name / "out" / "GLOBAL_MODEL.safetensors").read_bytes() for name in ("a", "b")]
    assert models[0] == models[1]
    assert (tmp_path / "a" / "out" / "client_a_training_history.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("--task-set", "alpha"), ExitCode.BAD_CONFIGURATION, "--task-set takes NAME=VALUE"),
        (("--task-set", "alpha=9"), ExitCode.BAD_CONFIGURATION, "setting alpha (width of MobileNetV2) is 0.1 to 2"),
        (("--backbone-weights", "none.h5"), ExitCode.BAD_CONFIGURATION, "there is no file none.h5"),
        ((), ExitCode.BAD_DATA, "there is no folder scans"),
    ],
)
def test_features_that_cannot_be_made_say_why(tmp_path: Path, more: Sequence[str], code: ExitCode, says: str) -> None:
    done = call("features", "--data", "scans", "--out", "scans", *more, cwd=tmp_path)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_predict_with_no_such_model_exits_3(tmp_path: Path) -> None:
    result = call("predict", str(tmp_path / "none.keras"), str(tmp_path / "scan.png"))

    assert (result.returncode, result.stdout) == (ExitCode.BAD_DATA, "")
    assert result.stderr == f"fedclient: there is no model file {tmp_path}/none.keras\n"
