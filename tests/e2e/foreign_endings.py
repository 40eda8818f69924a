"""How a client in another language ends, and that it keeps to what its site allows. 30 s."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from functools import partial
from typing import Any, ClassVar

import pytest

from fedclient.exit_codes import ExitCode
from fedserver.clock import Clock
from fedserver.coordinator.effects import Confirm
from fedserver.server import Listening
from fedserver.services import messages
from fedserver.services.negotiation import NegotiationServicer
from fedserver.services.transfer import TransferServicer
from fedstream.v1 import negotiation_pb2, transfer_pb2
from tests.support.features import SETTINGS, write_site
from tests.support.foreign import ForeignClient, command, start
from tests.support.processes import Running, RunningServer, Stage, looking, until
from tests.support.serving import serving

TASK = "brain_mri_head"


def is_idle(server: RunningServer) -> None:
    server.until("the client", lambda look: look.clients.get("alpha") == "idle")


def has_left(server: RunningServer) -> None:
    server.until("it to have left", lambda look: look.clients["alpha"] == "left")


class EndingSuite:
    """The statuses that `fedclient run --help` lists, where no test elsewhere sees to them already, and limits."""

    client: ClassVar[ForeignClient]

    def words(self, scene: Stage, server: RunningServer, *options: str, **how: Any) -> list[str]:
        data = write_site(scene.folder, seed=1)
        return command(scene, self.client, "alpha", server.listening, data, *options, **how)

    def open(self, scene: Stage, words: list[str], **how: Any) -> subprocess.Popen[bytes]:
        """Start it with standard output and error of another kind than a file."""
        process = subprocess.Popen(words, cwd=scene.folder, stdin=subprocess.DEVNULL, **how)
        scene.running.append(Running(process, scene.folder / "none"))
        return process

    async def fails(self, scene: Stage, listening: Listening, *options: str) -> Running:
        """Start it, and end it as soon as it has told the server that it failed."""
        where = ("alpha", listening, write_site(scene.folder, seed=1))
        client = await asyncio.to_thread(start, scene, self.client, *where, *options)
        failed = negotiation_pb2.OUTCOME_FAILED
        await asyncio.to_thread(
            looking, listening, "failure", lambda look: [part.outcome for part in look.parts.values()] == [failed]
        )
        client.end()
        return client

    @pytest.mark.parametrize(
        ("number", "code"),
        [
            (signal.SIGHUP, ExitCode.HUNG_UP),
            (signal.SIGINT, ExitCode.INTERRUPTED),
            (signal.SIGTERM, ExitCode.TERMINATED),
        ],
    )
    def test_client_stopped_by_a_signal_leaves_and_ends_with_its_status(
        self, scene: Stage, number: signal.Signals, code: ExitCode
    ) -> None:
        server = scene.server("--min-clients", "2", task=TASK, **SETTINGS)
        client = scene.launch("alpha", self.words(scene, server))
        is_idle(server)
        client.process.send_signal(number)
        assert client.wait(10) == code, client.text
        has_left(server)

    def test_client_whose_terminal_is_closed_leaves_though_it_hears_of_it_twice(self, scene: Stage) -> None:
        server = scene.server("--min-clients", "2", task=TASK, **SETTINGS)
        near, far = os.openpty()  # the process is the leader of the session whose terminal that is
        words = self.words(scene, server)
        process = self.open(scene, words, stdout=far, stderr=far, preexec_fn=partial(os.login_tty, far))
        os.close(far)
        is_idle(server)
        os.close(near)
        process.send_signal(signal.SIGHUP)  # from the shell; the system has sent one as well
        assert process.wait(10) == ExitCode.HUNG_UP
        has_left(server)

    def test_client_with_hang_ups_ignored_goes_on_after_one(self, scene: Stage) -> None:
        if not self.client.knows_nohup:
            pytest.skip(f"the runtime of {self.client.language} heeds every signal again")
        server = scene.server("--min-clients", "2", task=TASK, **SETTINGS)
        client = scene.launch("alpha", ["nohup", *self.words(scene, server)])
        is_idle(server)
        client.process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            client.process.wait(0.5)
        client.process.send_signal(signal.SIGTERM)
        assert client.wait(10) == ExitCode.TERMINATED, client.text

    def test_client_whose_output_is_lost_goes_on_to_the_end(self, scene: Stage) -> None:
        server = scene.server("--rounds", "1", "--min-clients", "1", task=TASK, **SETTINGS)
        process = self.open(scene, self.words(scene, server), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        assert (process.wait(30), server.wait()) == (ExitCode.FINISHED, 0)
        assert (scene.folder / "alpha" / "GLOBAL_MODEL.safetensors").exists()

    def test_second_client_on_one_state_folder_is_refused_until_the_first_is_killed(self, scene: Stage) -> None:
        server = scene.server("--min-clients", "2", task=TASK, **SETTINGS)
        words = self.words(scene, server)
        first = scene.launch("alpha", words)
        is_idle(server)
        second = scene.launch("second", words)
        assert second.wait(20) == ExitCode.BAD_CONFIGURATION, second.text
        assert f"another client uses {scene.folder / 'alpha' / 'state'}" in second.text.splitlines()[-1]
        first.process.kill()
        first.wait()
        third = scene.launch("third", words)
        until("the third", lambda: third.said("welcome") or third.said("the server says"))
        third.end()

    def test_state_folder_is_of_server_and_site_by_default_and_one_of_the_site_alone_is_told_of(
        self, scene: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(scene.folder / "home"))
        server = scene.server("--min-clients", "2", task=TASK, **SETTINGS)
        words = self.words(scene, server)
        at = words.index("--state-dir")
        del words[at : at + 2]
        folder = scene.folder / "home" / f"fedstream-{self.client.language}"
        (folder / "alpha" / "updates").mkdir(parents=True)
        (folder / "alpha" / "lock").touch()
        client = scene.launch("alpha", words)
        is_idle(server)
        client.end()
        assert (folder / server.listening.address.replace(":", "_") / "alpha").is_dir(), client.text
        told = [line["folder"] for line in client.said("the state folder of an earlier version is not used")]
        always_was_so = self.client.language == "go"
        assert told == ([] if always_was_so else [str(folder / "alpha")])

    async def test_welcome_in_a_version_of_the_protocol_that_was_not_offered_ends_the_client(
        self, scene: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sound = NegotiationServicer._welcome

        def later(servicer: NegotiationServicer, hello: negotiation_pb2.Hello) -> negotiation_pb2.NegotiateResponse:
            response = sound(servicer, hello)
            response.welcome.protocol = 2
            return response

        monkeypatch.setattr(NegotiationServicer, "_welcome", later)
        async with serving(scene.folder, task=TASK, task_settings=SETTINGS, min_clients=1) as (_, listening):
            where = ("alpha", listening, write_site(scene.folder, seed=1))
            client = await asyncio.to_thread(start, scene, self.client, *where)
            assert await client.ended() == ExitCode.DEFECT, client.text
        words = "fedstream-client: the server welcomes this client in version 2 of the protocol, and it speaks 1"
        assert client.text.splitlines()[-1] == words
        assert client.said("trained") == []

    async def test_plan_of_more_epochs_than_the_site_allows_is_not_trained(
        self, scene: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = messages.write_effect.dispatch(Confirm)

        def greedy(effect: Confirm, clock: Clock) -> negotiation_pb2.NegotiateResponse:
            response: negotiation_pb2.NegotiateResponse = honest(effect, clock)
            response.confirm.plan.epochs = 10
            return response

        messages.write_effect.register(Confirm, greedy)
        try:
            async with serving(scene.folder, task=TASK, task_settings=SETTINGS, min_clients=1) as (_, listening):
                client = await self.fails(scene, listening, "--max-epochs", "1")
        finally:
            messages.write_effect.register(Confirm, honest)
        assert client.said("trained") == []

    async def test_list_of_missing_tensors_that_makes_no_sense_is_a_failure_at_once(
        self, scene: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put = TransferServicer.PutManifest
        answered: list[list[int]] = []

        async def disordered(servicer: TransferServicer, *call: Any) -> transfer_pb2.PutManifestResponse:
            answer: transfer_pb2.PutManifestResponse = await put(servicer, *call)
            answered.append(list(answer.missing_tensors))
            answer.missing_tensors[:] = [1, 0]
            return answer

        monkeypatch.setattr(TransferServicer, "PutManifest", disordered)
        async with serving(scene.folder, task=TASK, task_settings=SETTINGS, min_clients=1) as (_, listening):
            client = await self.fails(scene, listening)
        assert answered == [[0, 1]]
        assert len(client.said("trained")) == 1

    def test_folder_for_the_final_model_that_cannot_be_is_told_before_any_work(self, scene: Stage) -> None:
        server = scene.server("--min-clients", "1", task=TASK, **SETTINGS)
        words = self.words(scene, server)
        out = words.index("--out") + 1
        words[out] = f"{write_site(scene.folder, seed=1)}/below-a-file"
        client = scene.launch("alpha", words)
        assert client.wait(20) == ExitCode.BAD_CONFIGURATION, client.text
        assert "--out: " in client.text.splitlines()[-1]
        assert client.said("trained") == []

    def test_training_that_fails_three_times_ends_the_client(
        self, scene: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLOW_HEAD_SECONDS", "0")
        monkeypatch.setenv("SLOW_HEAD_FAILS", "yes")
        server = scene.server("--min-clients", "1", "--retry-delay-seconds", "0.1", task=TASK, **SETTINGS)
        client = scene.launch("alpha", self.words(scene, server, slow=True))
        assert client.wait() == ExitCode.TRAINING_FAILED, client.text
        assert "failed" in client.text.splitlines()[-1]
        assert [line["because"] for line in client.events if line["level"] == "error"] == ["broken"] * 3
        has_left(server)
