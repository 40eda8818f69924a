"""What an operator does: configure, look, pause, resume, stop, and send signals, to processes as users run them."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedclient.exit_codes import ExitCode as ClientExit
from fedserver.exit_codes import ExitCode
from fedserver.server import Listening
from fedstream.v1 import admin_pb2, admin_pb2_grpc, negotiation_pb2
from fedtask.linear import Linear
from tests.support.negotiating import everybody, in_training, over, parts_of
from tests.support.processes import RunningServer, Said, Stage, until
from tests.support.serving import BareSite, serving
from tests.support.tasks import random_weights

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]

TASK = Linear({"features": "5"})
COUNTS = dict.fromkeys(
    ("outstanding", "completed", "quarantined", "declined", "withdrawn", "failed", "expired", "cancelled"), 0
)
CONFIGURATION = """\
name = "trial"
rounds = 9
min_clients = 2
lease_seconds = 300
retry_delay_seconds = 0

[task_settings]
features = 5

[plan]
epochs = 2
learning_rate = 0.25
"""


class Operator:
    """Somebody at the server's machine, who types commands."""

    def __init__(self, scene: Stage, server: RunningServer) -> None:
        self._scene, self._state = scene, str(server.state)

    async def say(self, *words: str) -> Said:
        """Run a `fedserver` command."""
        return await asyncio.to_thread(self._scene.command, "fedserver", *words, "--state", self._state)

    async def status(self) -> Any:
        """What `fedserver status --json` says."""
        return (await self.say("status", "--json")).json


@asynccontextmanager
async def site(server: RunningServer, name: str) -> AsyncIterator[BareSite]:
    """A site that was welcomed."""
    async with BareSite.dial(server.listening) as dialled:
        answer = await dialled.hello(name, TASK.schema(), TASK.meaning())
        assert answer.WhichOneof("kind") == "welcome", answer
        yield dialled


async def waiting_for(dialled: BareSite) -> str:
    """What the server says that it waits for."""
    message = await asyncio.wait_for(dialled.stream.read(), 60)
    assert message.WhichOneof("kind") == "waiting", message
    reason: str = message.waiting.reason
    return reason


async def say_goodbye(dialled: BareSite) -> None:
    """Close this side, as a client does that has all it wants; the server then closes its own."""
    await dialled.stream.done_writing()
    assert await asyncio.wait_for(dialled.stream.read(), 60) is grpc.aio.EOF
    assert await dialled.stream.code() is grpc.StatusCode.OK


async def test_operator_configures_looks_pauses_resumes_and_stops_after_the_round(scene: Stage) -> None:
    (scene.folder / "server.toml").write_text(CONFIGURATION)
    server = await asyncio.to_thread(scene.server, "--config", "server.toml", "--min-clients", "1", "--epochs", "3")
    operator = Operator(scene, server)
    check_configuration(server)
    await asyncio.to_thread(
        server.until, "the server to be ready", lambda look: look.state.reason == "for 1 more client"
    )
    assert (await operator.say("pause")).out == "paused: no further round opens until `fedserver resume`\n"
    async with site(server, "alpha") as alpha:
        await check_pause(operator, alpha)
        assert (await operator.say("resume")).out == "resumed\n"
        offer = await alpha.agree()
        await check_work(operator, alpha, offer)
        await stop_after_the_round(operator, alpha, offer)
    assert await server.ended() == ExitCode.FINISHED
    details, reason = server.summary["details"], "stopped by the coordinator"
    assert (details["outcome"], details["outcome_reason"]) == ("stopped", reason)
    assert server.summary["counts"]["1"]["completed"] == server.summary["rounds"] == 1
    gone = await operator.say("resume")
    assert (gone.status, gone.out) == (ExitCode.NO_SERVER, "")
    assert gone.err.startswith(f"fedserver: no server answers for {server.state} (its pid was {server.process.pid})")


def check_configuration(server: RunningServer) -> None:
    """Flags go over the file, the file over defaults, and the server says what came of it."""
    (effective,) = until("the configuration", lambda: server.said("configuration"))  # it is said once it serves
    chosen = ("name", "rounds", "min_clients", "lease_seconds", "task_settings", "plan", "strategy", "task")
    assert {key: effective[key] for key in chosen} == {
        "name": "trial",
        "rounds": 9,
        "min_clients": 1,
        "lease_seconds": 300.0,
        "task_settings": {"features": "5"},
        "plan": {"epochs": 3, "batch_size": None, "learning_rate": 0.25, "early_stopping_patience": None},
        "strategy": "fedavg",
        "task": "linear",
    }


@asynccontextmanager
async def administration(listening: Listening) -> AsyncIterator[admin_pb2_grpc.AdminServiceAsyncStub]:
    """The server's service for its operator."""
    async with grpc.aio.insecure_channel(listening.admin_address) as channel:
        yield admin_pb2_grpc.AdminServiceStub(channel)


async def check_pause(operator: Operator, alpha: BareSite) -> None:
    """While paused, a site that joins is told so, and is made no offer."""
    paused = "paused by the coordinator; `fedserver resume` goes on"
    assert await waiting_for(alpha) == paused
    status = await operator.status()
    told = (status["federation_name"], status["state"], status["reason"])
    assert told == ("trial", "FEDERATION_STATE_PAUSED", paused)
    assert (status["clients_connected"], status["min_clients"], status["rounds"]) == (1, 1, 9)
    assert "round" not in status
    assert [(one["name"], one["state"]) for one in status["clients"]] == [("alpha", "CLIENT_STATE_IDLE")]


AT_WORK = "round 1: 0 of 1 updates in, waiting for alpha"


async def check_work(operator: Operator, alpha: BareSite, offer: negotiation_pb2.Offer) -> None:
    """While a round is at work, an operator sees who does what."""
    assert (offer.round, offer.plan.epochs, offer.plan.learning_rate) == (1, 3, 0.25)
    training = negotiation_pb2.PHASE_TRAINING
    await alpha.say(progress=negotiation_pb2.Progress(offer_id=offer.offer_id, phase=training, epoch=2, epochs=3))
    assert (await alpha.stream.read()).WhichOneof("kind") == "lease_renewal"
    status = await operator.status()
    assert (status["state"], status["reason"]) == ("FEDERATION_STATE_RUNNING", AT_WORK)
    assert (status["round"]["number"], status["round"]["phase"]) == (1, "ROUND_PHASE_COLLECT")
    assert status["round"]["counts"] == {**COUNTS, "offered": 1, "outstanding": 1}
    assert [(one["name"], one["state"]) for one in status["clients"]] == [("alpha", "CLIENT_STATE_WORKING")]
    table = (await operator.say("status")).out
    assert re.match(rf"trial: running for \d+ s: {AT_WORK}\nround 1 of 9, 1 site connected", table)
    assert re.search(r"alpha +at work .* training, epoch 2 of 3", table)
    (part,) = (await operator.say("rounds", "--round", "1", "--json")).json["participations"]
    told = {"client_name": "alpha", "outcome": "OUTCOME_UNSPECIFIED", "phase": "PHASE_TRAINING"}
    assert {key: part[key] for key in (*told, "epoch", "epochs")} == {**told, "epoch": 2, "epochs": 3}
    assert re.search(r"1 +at work +1 = 1 outstanding", (await operator.say("rounds")).out)
    missing = await operator.say("rounds", "--round", "7")
    assert (missing.status, missing.err) == (ExitCode.BAD_CONFIGURATION, "fedserver: there is no round 7\n")


async def stop_after_the_round(operator: Operator, alpha: BareSite, offer: negotiation_pb2.Offer) -> None:
    """The round at work is awaited, and no other one opens."""
    said = await operator.say("stop", "--finish-round")
    assert said.out == "stopping: the round at work is finished, then the report is written, and the server ends\n"
    assert (await operator.status())["reason"] == f"{AT_WORK}; after this round the federation ends"
    finished = await alpha.upload(offer.upload_id, TASK.schema(), random_weights(TASK.schema(), 1))
    assert finished.reason == ""
    assert (await alpha.hear()).round_outcome.succeeded
    assert (await alpha.hear()).federation_outcome.reason == "stopped by the coordinator"
    await say_goodbye(alpha)


async def test_status_after_the_last_round_says_that_the_federation_is_over(scene: Stage) -> None:
    server = await asyncio.to_thread(scene.server, "--min-clients", "1", "--rounds", "1", features=5)
    operator = Operator(scene, server)
    async with site(server, "alpha") as alpha:
        offer = await alpha.agree()
        await alpha.upload(offer.upload_id, TASK.schema(), random_weights(TASK.schema(), 1))
        assert (await alpha.hear()).round_outcome.succeeded
        assert (await alpha.hear()).federation_outcome.reason == "all 1 rounds done"
        await say_goodbye(alpha)
    assert await server.ended() == ExitCode.FINISHED
    for words in ("status", "pause"):
        said = await operator.say(words)
        assert (said.status, said.out) == (ExitCode.NO_SERVER, "")
        over = "and its federation is over (all 1 rounds done): 1 rounds were run; `fedserver rounds` shows them"
        assert said.err == f"fedserver: no server runs on {server.state}, {over}\n"


@pytest.mark.parametrize("way", ["stop", "SIGINT", "SIGTERM"])
async def test_server_that_is_stopped_at_once_tells_everyone_and_writes_its_report(scene: Stage, way: str) -> None:
    server = await asyncio.to_thread(scene.server, "--min-clients", "1", features=5)
    async with site(server, "alpha") as alpha:
        offer = await alpha.agree()
        if way == "stop":
            assert (await Operator(scene, server).say("stop")).status == ExitCode.FINISHED
        else:
            server.process.send_signal(signal.Signals[way])
        cancel = (await alpha.hear()).cancel
        assert (cancel.offer_id, cancel.reason) == (offer.offer_id, "round 1 closed: stopped by the coordinator")
        outcome = (await alpha.hear()).round_outcome
        assert (outcome.succeeded, outcome.outcome) == (False, negotiation_pb2.OUTCOME_CANCELLED)
        assert outcome.reason == "0 of at least 1 updates: stopped by the coordinator"
        farewell = (await alpha.hear()).federation_outcome
        assert farewell.reason == "stopped by the coordinator"
        assert farewell.last_model == farewell.best_model == offer.base_model
        await say_goodbye(alpha)
    assert await server.ended() == ExitCode.FINISHED
    assert server.summary["counts"]["1"] == {
        **{key: 0 for key in COUNTS if key != "outstanding"},
        "offered": 1,
        "cancelled": 1,
    }
    assert (server.summary["best_round"], server.summary["accuracy"]) == (None, None)
    assert (server.out / "report" / "report.html").exists()


@pytest.mark.parametrize("way", ["stop", "SIGINT", "SIGTERM"])
def test_server_that_is_stopped_while_its_model_is_made_ends_at_once_and_says_what_stays(
    scene: Stage, way: str
) -> None:
    server = scene.server("--log-level", "debug", task="tests.support.tasks:Slow", python_path=ROOT)
    until("the model to be made", lambda: "making the model" in server.text)
    if way == "stop":
        assert scene.command("fedserver", "stop", "--state", str(server.state)).status == ExitCode.FINISHED
    else:
        server.process.send_signal(signal.Signals[way])
    assert server.wait(10.0) == ExitCode.FINISHED
    [stopped] = server.said("stopped")
    words = f"stopped by the coordinator before it was ready; what is in {server.state} stays"
    assert stopped["because"] == f"{words}, and the same command goes on from it"


async def test_server_goes_on_after_a_hang_up_and_says_so(scene: Stage) -> None:
    server = await asyncio.to_thread(scene.server, "--min-clients", "1", "--rounds", "1", features=5)
    async with site(server, "alpha") as alpha:
        offer = await alpha.agree()
        server.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(until, "the hang-up to be heard", lambda: "hang-up" in server.text)
        await alpha.upload(offer.upload_id, TASK.schema(), random_weights(TASK.schema(), 1))
        assert (await alpha.hear()).round_outcome.succeeded
        assert (await alpha.hear()).federation_outcome.reason == "all 1 rounds done"
        await say_goodbye(alpha)
    assert await server.ended() == ExitCode.FINISHED
    [ignored] = server.said("a hang-up (SIGHUP) is ignored")
    assert ignored["hint"] == "`fedserver stop` or SIGTERM ends the federation"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_a_server_whose_task_is_busy(scene: Stage, first: signal.Signals) -> None:
    server = scene.server("--log-level", "debug", task="tests.support.tasks:SlowEnd", python_path=ROOT)
    server.until("the server to be ready", lambda look: look.state.state == admin_pb2.FEDERATION_STATE_WAITING)
    server.process.send_signal(first)
    until("the task to be busy", lambda: "writing the model" in server.text)
    server.process.send_signal(signal.SIGINT)
    assert server.wait(10.0) == -signal.SIGINT


async def test_pause_outlasts_a_restart_of_the_server(tmp_path: Path) -> None:
    settings = {"min_clients": 1, "rounds": 5, "plaintext": True}
    async with serving(tmp_path, **settings) as (_, listening), administration(listening) as stub:
        await stub.Pause(admin_pb2.PauseRequest())
    async with serving(tmp_path, **settings) as (server, listening), BareSite.dial(listening) as alpha:
        await alpha.join("alpha", server)
        assert await waiting_for(alpha) == "paused by the coordinator; `fedserver resume` goes on"
        async with administration(listening) as stub:
            await stub.Resume(admin_pb2.ResumeRequest())
        assert (await alpha.hear()).WhichOneof("kind") == "offer"
    async with serving(tmp_path, **settings) as (server, listening), BareSite.dial(listening) as alpha:
        await alpha.join("alpha", server)
        assert (await alpha.hear()).WhichOneof("kind") == "offer"


async def test_clients_that_are_stopped_leave_and_count_as_failed(scene: Stage) -> None:
    settings = {"task_settings": {"seconds": "30"}, "retry_delay_seconds": 0.0}
    async with serving(scene.folder, min_clients=1, rounds=1, **settings) as (server, listening):
        server.federation.pause()
        interrupted = scene.client("interrupted", listening, shard="0/2")
        terminated = scene.client("terminated", listening, shard="1/2")
        await everybody(server, "interrupted", "terminated")
        await in_training(server, "interrupted", 1)
        await in_training(server, "terminated", 1)
        interrupted.process.send_signal(signal.SIGINT)
        assert await interrupted.ended() == ClientExit.INTERRUPTED
        terminated.process.send_signal(signal.SIGTERM)
        assert await terminated.ended() == ClientExit.TERMINATED
        again = "start it again to take part again"
        assert interrupted.text.endswith(f"fedclient: stopped by Ctrl-C; {again}\n")
        assert terminated.text.endswith(f"fedclient: stopped by SIGTERM; {again}\n")
        left = ("failed", "left: stopped by its operator")
        await over(server, 1)
        assert parts_of(server, 1) == {"interrupted": left, "terminated": left}
        assert [client.state.value for client in server.federation.population] == ["left", "left"]


async def test_second_server_is_refused_the_state_directory_and_the_port_of_the_first(scene: Stage) -> None:
    async with serving(scene.folder) as (_, listening):
        run = ("fedserver", "run", "--task", "linear", "--log-text", "--state")
        same = await asyncio.to_thread(scene.command, *run, str(scene.folder / "state"), "--listen", "127.0.0.1:0")
        assert same.status == ExitCode.BAD_STATE
        assert re.search(rf"{scene.folder}/state is in use by another fedserver \(pid \d+\)", same.err + same.out)
        other = await asyncio.to_thread(scene.command, *run, str(scene.folder / "other"), "--listen", listening.address)
        assert other.status == ExitCode.BAD_CONFIGURATION
        expected = f"cannot listen on {listening.address}: is another program using the port, "
        assert expected in other.err + other.out


@pytest.mark.parametrize(
    ("options", "toml", "message"),
    [
        (
            ["--plaintext", "--listen", "0.0.0.0:0"],
            "",
            "plaintext would send weights readable and changeable by anyone on the way",
        ),
        ([], "colour = 3\n", "colour is not a setting (see `fedserver run --help`)"),
        ([], "[plan]\nepoch = 3\n", "plan.epoch is not a setting (see `fedserver run --help`)"),
        ([], "rounds = 0\n", "rounds: Input should be greater than or equal to 1"),
        (["--min-clients", "5", "--reporting-goal", "4"], "", "reporting_goal is below min_clients"),
        (["--strategy", "median"], "", "unknown strategy 'median'; choose one of fedavg, uniform, rank_decay"),
    ],
)
def test_server_with_a_wrong_setting_starts_nothing_and_names_it(
    scene: Stage, options: list[str], toml: str, message: str
) -> None:
    (scene.folder / "server.toml").write_text(toml)
    run = ("fedserver", "run", "--task", "linear", "--config", "server.toml", "--state", "state")
    said = scene.command(*run, *options)
    assert (said.status, said.out) == (ExitCode.BAD_CONFIGURATION, "")
    assert said.err.startswith("fedserver: the configuration is wrong: ")
    assert message in said.err
    assert not (scene.folder / "state").exists()


def test_server_whose_configuration_is_no_toml_says_where(scene: Stage) -> None:
    (scene.folder / "server.toml").write_text("rounds = \n")
    said = scene.command("fedserver", "run", "--config", "server.toml")
    assert said.status == ExitCode.BAD_CONFIGURATION
    assert said.err.startswith("fedserver: server.toml is not TOML: ")
    assert "line 1" in said.err


def test_server_whose_output_folder_is_a_file_starts_nothing(scene: Stage) -> None:
    (scene.folder / "out").touch()
    said = scene.command("fedserver", "run", "--listen", "127.0.0.1:0", "--state", "state", "--out", "out")
    assert said.status == ExitCode.BAD_CONFIGURATION
    assert "--out out cannot be made a folder: a file is in its way" in said.err
    assert not (scene.folder / "state").exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that takes no file, not even of root")
@pytest.mark.parametrize("out", ["/proc/self", "/proc/self/out"])
def test_server_whose_output_folder_takes_no_file_starts_nothing(scene: Stage, out: str) -> None:
    said = scene.command("fedserver", "run", "--listen", "127.0.0.1:0", "--state", "state", "--out", out)
    assert said.status == ExitCode.BAD_CONFIGURATION
    assert f"--out {out}" in said.err
    assert "cannot be made (" in said.err or "cannot be written (" in said.err
    assert not (scene.folder / "state").exists()


def test_server_whose_task_has_no_such_setting_ends_with_the_reason(scene: Stage) -> None:
    listen = ("--listen", "127.0.0.1:0", "--state", "state", "--out", "out")
    said = scene.command("fedserver", "run", "--task", "linear", "--task-set", "colour=3", *listen)
    assert said.status == ExitCode.FAILED
    assert "unknown setting 'colour'; known are features, examples" in said.out + said.err


@pytest.mark.parametrize("name", ["50%41", "a#1", "a?b", "a,b"])
def test_server_whose_state_directory_has_a_name_that_is_no_uri_answers(scene: Stage, name: str) -> None:
    server = scene.server(name=name)
    said = scene.command("fedserver", "status", "--state", str(server.state))
    assert (said.status, said.err) == (ExitCode.FINISHED, "")
    assert said.out.startswith("federation: ")
