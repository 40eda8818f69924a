"""What every client in another language is tested for, as processes over TLS, beside a Python client and through kills.

A language's own module has a class for each suite that its client is to pass, with the client in it.
"""

from __future__ import annotations

import asyncio
import math
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedclient.exit_codes import ExitCode
from fedserver.server import Listening
from fedserver.services import transfer
from fedserver.services.negotiation import NegotiationServicer
from fedserver.services.transfer import TransferServicer
from fedserver.store.ledger import Entry, ledger
from fedserver.store.reading import StateReader
from fedserver.store.uploads import finished_uploads
from fedstream.body import Bytes, Chunk, admit_chunk
from fedstream.errors import Superseded
from fedstream.limits import WINDOW_BYTES
from fedstream.plan import Plan
from fedstream.v1 import admin_pb2, negotiation_pb2
from fedtask.brain_mri_head.features import Features, write_features
from fedtask.brain_mri_head.task import BrainMriHead
from fedtask.task import SiteOptions, Weights
from tests.support.brain_mri import ignore
from tests.support.features import SETTINGS, site_features, write_site, write_wide_site
from tests.support.foreign import ForeignClient, start
from tests.support.full_disk import fill
from tests.support.processes import Look, Running, RunningServer, Said, Stage, looking, soon, stage, until
from tests.support.proxy import proxied
from tests.support.serving import end_certificates, serving

TASK = "brain_mri_head"
ROUNDS = 3
MIB = 1 << 20
OWN_TESTS_SECONDS = 200.0
WIDTH = 3 << 20
"""Features of which a kernel takes 12 MiB, and in bfloat16 6 MiB: more than the window of an upload."""
CUT_BYTES = WINDOW_BYTES + MIB
"""More than a client sends before it hears of bytes on the server's disk, so that a cut there leaves some."""
NARROW = 1 << 19
"""Features of which a kernel takes 2 MiB: of two chunks, as they are at first."""
CUT_EACH_BYTES, LINE_BYTES_PER_SECOND = 700_000, 2 * MIB
"""Of a line that is cut, and slow enough for what it has carried to be read at its other end."""
WIDE = {"backbone": "none", "features": str(WIDTH), "epochs": "1", "patience": "0"}


@dataclass(frozen=True, slots=True)
class Stored:
    """An update as the server keeps it."""

    model: str
    changed: Weights


class Served(Protocol):
    """A server, in a process of its own or in this one, whose folder can be read."""

    @property
    def state(self) -> Path: ...


def ledger_of(server: Served) -> list[Entry]:
    reader = StateReader(server.state)
    try:
        return [row.entry() for row in ledger(reader.database)]
    finally:
        reader.close()


def stored_updates(server: Served, number: int) -> dict[str, Stored]:
    """The updates of a round, by client."""
    reader = StateReader(server.state)
    try:
        clients = {member.rank: member.client for member in ledger(reader.database)[number - 1].entry().cohort}
        uploads = finished_uploads(reader.database, reader.updates_folder, number)
        return {
            clients[one.rank]: Stored(
                one.update.manifest.model_digest().hex,
                {name: np.array(values) for name, values in one.update.tensors().items()},
            )
            for one in uploads
        }
    finally:
        reader.close()


def model_of(server: Served, version: int) -> Weights:
    """A global model, by the round that made it."""
    entry = ledger_of(server)[max(version, 1) - 1]
    name = entry.aggregate if version else entry.base
    assert name is not None
    return load_file(server.state / "models" / f"{name.model_digest}.safetensors")


def trained_in_python(
    base: Weights, data: Path, entry: Entry, client: str, settings: Mapping[str, str] = SETTINGS
) -> Weights:
    """What the Python task makes of a client's base, plan and data."""
    (member,) = [one for one in entry.cohort if one.client == client]
    common = entry.plan
    plan = Plan(member.epochs, common.batch_size, common.learning_rate, common.early_stopping_patience, member.seed)
    task = BrainMriHead(settings)
    task.open_site(SiteOptions(data))
    return task.fine_tune(base, plan, ignore).weights


@dataclass(frozen=True, slots=True)
class Played:
    """A federation of one Python client and two others that has ended, and its server's folder."""

    statuses: dict[str, int]
    server: RunningServer
    clients: dict[str, Running]
    data: dict[str, Path]
    entries: list[Entry]
    verified: Said
    folder: Path


def is_training(look: Look) -> bool:
    return [part.phase for part in look.parts.values()] == [negotiation_pb2.PHASE_TRAINING]


def the_member(server: RunningServer) -> Any:
    (entry,) = ledger_of(server)
    (member,) = entry.cohort
    return member


class ClientSuite:
    """A whole federation, kills and cuts, and how a client ends otherwise. 90 s."""

    client: ClassVar[ForeignClient]

    @classmethod
    def start(cls, scene: Stage, name: str, listening: Listening, data: Path, *options: str, **how: Any) -> Running:
        """Start a client of this language; `how` is as `tests.support.foreign.start` has it."""
        return start(scene, cls.client, name, listening, data, *options, **how)

    @pytest.fixture(scope="class")
    @classmethod
    def played(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
        with stage(tmp_path_factory.mktemp("foreign")) as scene:
            data = {name: write_site(scene.folder, seed) for seed, name in enumerate(("python", "one", "two"))}
            holdout = write_site(scene.folder, seed=9)
            options = ["--rounds", str(ROUNDS), "--min-clients", "3", "--holdout", str(holdout)]
            server = scene.server(*options, task=TASK, **SETTINGS)
            clients = {
                "python": scene.client("python", server.listening, "--data", str(data["python"])),
                "one": cls.start(scene, "one", server.listening, data["one"]),
                "two": cls.start(scene, "two", server.listening, data["two"], "--max-epochs", "2"),
            }
            statuses = {name: client.wait() for name, client in clients.items()} | {"server": server.wait()}
            verified = scene.command("fedserver", "verify", "--state", str(server.state))
            yield Played(statuses, server, clients, data, ledger_of(server), verified, scene.folder)

    def test_python_and_foreign_clients_finish_a_federation_that_verifies(self, played: Played) -> None:
        assert played.statuses == dict.fromkeys(("python", "one", "two", "server"), 0), played.clients["one"].text
        assert [entry.succeeded for entry in played.entries] == [True] * ROUNDS
        assert {member.outcome for entry in played.entries for member in entry.cohort} == {"completed"}
        assert (played.verified.status, "everything agrees" in played.verified.out) == (0, True)
        scores = played.entries[-1].evaluation
        assert scores is not None
        assert scores.metrics["accuracy"] > 0.95

    def test_server_has_the_updates_that_the_client_trained(self, played: Played) -> None:
        for name in ("one", "two"):
            trained = [line["model"] for line in played.clients[name].said("trained")]
            assert trained == [stored_updates(played.server, number)[name].model for number in range(1, ROUNDS + 1)]

    def test_counter_offer_of_fewer_epochs_is_what_is_trained(self, played: Played) -> None:
        (member,) = [one for one in played.entries[0].cohort if one.client == "two"]
        assert member.epochs == 2
        assert [line["epochs"] for line in played.clients["two"].said("trained")] == [2] * ROUNDS

    @pytest.mark.parametrize("client", ["one", "two", "python"])
    def test_update_is_what_python_makes_of_the_same_base_plan_and_data(self, played: Played, client: str) -> None:
        for number, entry in enumerate(played.entries, start=1):
            expected = trained_in_python(model_of(played.server, number - 1), played.data[client], entry, client)
            changed = stored_updates(played.server, number)[client].changed
            assert set(changed) == set(expected)
            for name, values in changed.items():
                atol = 1e-9 if client == "python" else self.client.training_error
                np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=atol)

    def test_update_of_a_site_without_validation_examples_is_what_python_makes_of_it(self, scene: Stage) -> None:
        settings = SETTINGS | {"patience": "1", "epochs": "30", "class_weights": "balanced"}
        site = site_features(seed=1, num_train=70, num_val=0)
        data = scene.folder / "site.features"
        write_features(Features(site.train.take(np.arange(70) % 3 > 0), site.val, site.meaning), data)
        server = scene.server("--rounds", "1", "--min-clients", "1", task=TASK, **settings)
        client = self.start(scene, "alpha", server.listening, data)
        assert (client.wait(), server.wait()) == (0, 0), client.text
        (entry,) = ledger_of(server)
        expected = trained_in_python(model_of(server, 0), data, entry, "alpha", settings)
        for name, values in stored_updates(server, 1)["alpha"].changed.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=self.client.training_error)

    def test_final_model_is_that_of_the_python_client(self, played: Played) -> None:
        models = [load_file(played.folder / name / "GLOBAL_MODEL.safetensors") for name in ("python", "one", "two")]
        assert [{name: values.tolist() for name, values in model.items()} for model in models] == [
            {name: values.tolist() for name, values in models[0].items()}
        ] * 3

    # --- Kills and cuts ---

    def test_client_killed_in_training_comes_back_and_finishes(self, scene: Stage) -> None:
        data = write_site(scene.folder, seed=1)
        server = scene.server("--rounds", "1", "--min-clients", "1", task=TASK, **SETTINGS)
        first = self.start(scene, "alpha", server.listening, data, slow=True)
        server.until("training", is_training)
        first.process.kill()
        assert first.wait() == -signal.SIGKILL
        second = self.start(scene, "alpha", server.listening, data, slow=True)
        assert (second.wait(), server.wait()) == (0, 0), second.text
        (trained,) = second.said("trained")  # both processes write to one log
        assert (the_member(server).outcome, the_member(server).update.model_digest) == ("completed", trained["model"])

    def test_client_goes_on_training_while_the_server_is_killed(self, scene: Stage) -> None:
        data = write_site(scene.folder, seed=1)
        options = ["--rounds", "1", "--min-clients", "1"]
        first = scene.server(*options, task=TASK, **SETTINGS)
        client = self.start(scene, "alpha", first.listening, data, slow=True)
        first.until("training", is_training)
        first.process.kill()
        first.wait()
        second = scene.server(*options, listen=first.listening.address, task=TASK, **SETTINGS)
        assert (client.wait(), second.wait()) == (0, 0), client.text
        assert len(client.said("trained")) == 1
        assert the_member(second).update.model_digest == client.said("trained")[0]["model"]

    async def test_server_killed_in_the_middle_of_an_upload_gets_the_rest_of_it(self, scene: Stage) -> None:
        data = write_wide_site(scene.folder, WIDTH, WIDE)
        options = ["--rounds", "1", "--min-clients", "1"]
        first = await asyncio.to_thread(scene.server, *options, task=TASK, **WIDE)
        async with proxied(first.listening) as (proxy, near):
            proxy.cut_after(CUT_BYTES)
            client = self.start(scene, "alpha", near, data)
            await soon("the cut", lambda: proxy.cuts == 1)
            proxy.refusing = True
            await asyncio.to_thread(
                first.until, "bytes on its disk", lambda look: look.parts["alpha"].committed_size > 0
            )
            first.process.kill()
            await first.ended()
            second = await asyncio.to_thread(scene.server, *options, listen=first.listening.address, task=TASK, **WIDE)
            before, proxy.refusing = proxy.bytes_up, False
            assert (await client.ended(), await second.ended()) == (0, 0), client.text
            sent_again = proxy.bytes_up - before
        (trained,) = client.said("trained")
        assert (the_member(second).outcome, the_member(second).update.model_digest) == ("completed", trained["model"])
        (resumed,) = client.said("resuming the upload")
        assert resumed["committed"] > 0
        assert sent_again < WIDTH * 4 - resumed["committed"] + MIB

    async def test_client_killed_in_its_upload_does_not_train_again(self, scene: Stage) -> None:
        data = write_wide_site(scene.folder, WIDTH, WIDE)
        server = await asyncio.to_thread(scene.server, "--rounds", "1", "--min-clients", "1", task=TASK, **WIDE)
        async with proxied(server.listening) as (proxy, near):
            proxy.cut_after(CUT_BYTES, and_refuse=True)  # or a quick client is done before it is killed
            first = self.start(scene, "alpha", near, data)
            await soon("the cut", lambda: proxy.cuts == 1)
            first.process.kill()
            await first.ended()
            await asyncio.to_thread(
                server.until, "bytes on its disk", lambda look: look.parts["alpha"].committed_size > 0
            )
            proxy.refusing = False
            second = self.start(scene, "alpha", near, data)
            assert (await second.ended(), await server.ended()) == (0, 0), second.text
        kept = second.said("this round is trained already; sending what was kept")
        (trained,) = second.said("trained")
        assert (len(kept), the_member(server).update.model_digest) == (1, trained["model"])
        assert second.said("sending the update")[-1]["committed"] > 0

    async def test_client_drops_what_the_server_cancels(self, scene: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLOW_HEAD_SECONDS", "60")
        server = scene.server("--min-clients", "1", task=TASK, **SETTINGS)
        client = self.start(scene, "alpha", server.listening, write_site(scene.folder, seed=1), slow=True)
        server.until("training", is_training)
        with server.administration() as stub:
            stub.Stop(admin_pb2.StopRequest(finish_round=False))
        assert (client.wait(30), server.wait(30)) == (0, 0), client.text
        assert len(client.said("the server does not want this round's update")) == 1
        assert (client.said("trained"), client.said("trying again")) == ([], [])

    @pytest.mark.parametrize("phase", [negotiation_pb2.PHASE_DOWNLOADING, negotiation_pb2.PHASE_UPLOADING])
    async def test_line_that_is_cut_more_often_than_a_chunk_takes_carries_smaller_ones(
        self, scene: Stage, phase: int
    ) -> None:
        settings = WIDE | {"features": str(NARROW)}
        data = write_wide_site(scene.folder, NARROW, settings)
        server = await asyncio.to_thread(scene.server, "--rounds", "1", "--min-clients", "1", task=TASK, **settings)
        async with proxied(server.listening, LINE_BYTES_PER_SECOND) as (proxy, near):
            if phase == negotiation_pb2.PHASE_DOWNLOADING:
                proxy.bytes_per_connection = CUT_EACH_BYTES
            client = self.start(scene, "alpha", near, data, slow=True)
            await asyncio.to_thread(server.until, "training", is_training)
            proxy.bytes_per_connection = CUT_EACH_BYTES if phase == negotiation_pb2.PHASE_UPLOADING else math.inf
            # Not until the client says so: of an update that was finished just when the line was cut, it never hears.
            await soon("the update to be there", lambda: server.said("round over"), 120)
            proxy.bytes_per_connection = math.inf
            assert (await client.ended(), await server.ended()) == (0, 0), client.text
        assert (len(client.said("trained")), the_member(server).outcome) == (1, "completed")

    async def test_what_was_trained_waits_for_a_full_disk(self, scene: Stage, small_disk: Path) -> None:
        server = await asyncio.to_thread(scene.server, "--rounds", "1", "--min-clients", "1", task=TASK, **SETTINGS)
        data = write_site(scene.folder, seed=1)
        client = self.start(scene, "alpha", server.listening, data, slow=True, state=str(small_disk))
        await asyncio.to_thread(server.until, "training", is_training)
        ballast = fill(small_disk, 0)
        await soon("what waits", lambda: client.said("what was trained waits for the disk"))
        ballast.unlink()
        assert (await client.ended(), await server.ended()) == (0, 0), client.text
        (trained,) = client.said("trained")
        assert (the_member(server).outcome, the_member(server).update.model_digest) == ("completed", trained["model"])

    # --- How it ends otherwise ---

    def test_two_clients_of_one_name_are_told_apart(self, scene: Stage) -> None:
        server = scene.server("--min-clients", "2", task=TASK, **SETTINGS)
        data = write_site(scene.folder, seed=1)
        twins = [self.start(scene, "alpha", server.listening, data, state=f"state_{number}") for number in range(2)]
        replaced = until("one to give up", lambda: [one for one in twins if one.process.poll() is not None])
        assert [one.process.returncode for one in replaced] == [ExitCode.REPLACED]
        assert "another client called alpha took over" in replaced[0].text

    def test_client_with_features_that_mean_something_else_is_declined_with_both_meanings(self, scene: Stage) -> None:
        server = scene.server("--min-clients", "1", task=TASK, **(SETTINGS | {"positive_class": "no"}))
        client = self.start(scene, "alpha", server.listening, write_site(scene.folder, seed=1))
        assert client.wait() == ExitCode.DECLINED
        assert 'the federation means {"class_names":["no","yes"],"positive_class":"no"' in client.text
        assert 'this client means {"class_names":["no","yes"],"positive_class":"yes"' in client.text

    def test_client_with_another_width_is_declined_with_the_tensor(self, scene: Stage) -> None:
        server = scene.server("--min-clients", "1", task=TASK, **(SETTINGS | {"features": "7"}))
        data = write_site(scene.folder, seed=1)
        content = data.read_bytes()
        assert content.count(b"6 numbers") == 1
        data.write_bytes(content.replace(b"6 numbers", b"7 numbers"))
        client = self.start(scene, "alpha", server.listening, data)
        assert client.wait() == ExitCode.DECLINED
        assert (
            "the federation has head/kernel DATA_TYPE_FLOAT32 [7,1] trainable, this client head/kernel" in client.text
        )

    def test_client_refuses_a_server_with_another_fingerprint(self, scene: Stage) -> None:
        server = scene.server("--min-clients", "1", task=TASK, **SETTINGS)
        wrong = "sha256:" + "0" * 64
        client = self.start(scene, "alpha", server.listening, scene.folder / "none", "--fingerprint", wrong)
        assert client.wait() == ExitCode.UNTRUSTED
        assert server.listening.fingerprint in client.text

    def test_client_knows_a_server_by_its_fingerprint_in_capitals(self, scene: Stage) -> None:
        options = ["--rounds", "1", "--min-clients", "1", "--open-enrolment"]
        server = scene.server(*options, task=TASK, **SETTINGS)
        kind, _, digits = str(server.listening.fingerprint).partition(":")
        data = write_site(scene.folder, seed=1)
        client = self.start(scene, "alpha", server.listening, data, "--fingerprint", f"{kind}:{digits.upper()}")
        assert (client.wait(), server.wait()) == (0, 0), client.text

    @pytest.mark.parametrize("state", ["log", "log/below"])
    def test_state_folder_that_cannot_be_used_is_told_as_a_wrong_option(self, scene: Stage, state: str) -> None:
        server = scene.server("--min-clients", "2", task=TASK, **SETTINGS)
        (scene.folder / "alpha").mkdir()
        (scene.folder / "alpha" / "log").write_text("a file")
        client = self.start(scene, "alpha", server.listening, write_site(scene.folder, seed=1), state=state)
        assert client.wait(20) == ExitCode.BAD_CONFIGURATION, client.text
        assert "the folder for what must survive a restart cannot be used: " in client.text.splitlines()[-1]

    async def test_client_that_is_refused_in_its_upload_tells_server_and_operator_and_ends(
        self, scene: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLOW_HEAD_SECONDS", "5")  # as long as it may take to see that it trains, and more
        data = write_site(scene.folder, seed=1)
        async with serving(scene.folder, task=TASK, task_settings=SETTINGS, min_clients=1) as (server, listening):
            client = await asyncio.to_thread(self.start, scene, "alpha", listening, data, slow=True)
            await asyncio.to_thread(looking, listening, "training", is_training)
            end_certificates(server, monkeypatch)
            assert await client.ended() == ExitCode.UNTRUSTED, client.text
            await asyncio.to_thread(looking, listening, "it to have left", lambda look: look.clients["alpha"] == "left")
            outcome = await asyncio.to_thread(looking, listening, "its end", lambda look: look.parts["alpha"].outcome)
        why = "this site's certificate has expired; ask the coordinator for a new invitation"
        last = client.text.splitlines()[-1]
        assert (why in last, last.count("ask the coordinator")) == (True, 1)
        assert [why in line["because"] for line in client.events if line["level"] == "error"] == [True]
        assert outcome == negotiation_pb2.OUTCOME_FAILED

    async def test_upload_that_is_taken_over_again_and_again_is_given_up(
        self, scene: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun: list[str] = []

        async def give_way(_servicer: TransferServicer, upload_id: str, *_: object) -> None:
            begun.append(upload_id)
            raise Superseded("a newer stream of this upload took over")

        monkeypatch.setattr(TransferServicer, "_write", give_way)
        async with serving(scene.folder, task=TASK, task_settings=SETTINGS, min_clients=1) as (_, listening):
            data = write_site(scene.folder, seed=1)
            client = await asyncio.to_thread(self.start, scene, "alpha", listening, data)
            failed = negotiation_pb2.OUTCOME_FAILED
            await asyncio.to_thread(
                looking, listening, "failure", lambda look: [part.outcome for part in look.parts.values()] == [failed]
            )
            client.end()
        assert 1 < len(begun) <= 4

    def test_client_stopped_by_its_operator_leaves(self, scene: Stage) -> None:
        server = scene.server("--min-clients", "2", task=TASK, **SETTINGS)
        client = self.start(scene, "alpha", server.listening, write_site(scene.folder, seed=1))
        server.until("the client", lambda look: look.clients.get("alpha") == "idle")
        client.process.send_signal(signal.SIGTERM)
        assert client.wait() == ExitCode.TERMINATED
        server.until("it to have left", lambda look: look.clients["alpha"] == "left")

    async def play_one_round(self, scene: Stage) -> None:
        """A whole federation, of a server in this process and one client."""
        settings: dict[str, Any] = {"task": TASK, "task_settings": SETTINGS, "rounds": 1, "min_clients": 1}
        async with serving(scene.folder, **settings) as (_, listening):
            data = write_site(scene.folder, seed=1)
            client = await asyncio.to_thread(self.start, scene, "alpha", listening, data)
            assert await client.ended() == 0, client.text

    async def test_upload_begins_with_an_empty_chunk(self, scene: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []

        def admit(chunk: Chunk, *place: int) -> Bytes:
            sizes.append(len(chunk.data))
            return admit_chunk(chunk, *place)

        monkeypatch.setattr(transfer, "admit_chunk", admit)
        await self.play_one_round(scene)
        assert (sizes[0], [size > 0 for size in sizes[1:]]) == (0, [True] * (len(sizes) - 1))
        assert len(sizes) > 1

    async def test_fetching_the_final_model_is_told_to_the_server_which_waits_for_it(
        self, scene: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heard: list[negotiation_pb2.NegotiateRequest] = []
        hear = NegotiationServicer._hear

        async def noted(servicer: Any, client: str, kind: str | None, request: Any) -> None:
            heard.append(request)
            await hear(servicer, client, kind, request)

        monkeypatch.setattr(NegotiationServicer, "_hear", noted)
        await self.play_one_round(scene)
        (accepted,) = [one.accept.offer_id for one in heard if one.WhichOneof("kind") == "accept"]
        last = heard[-1].progress
        assert last.phase == negotiation_pb2.PHASE_DOWNLOADING
        assert last.offer_id not in ("", accepted)

    def test_own_tests_of_the_client_pass(self) -> None:
        self.client.build()
        for command in self.client.own_tests:
            done = subprocess.run(
                command,
                cwd=self.client.folder,
                capture_output=True,
                text=True,
                timeout=OWN_TESTS_SECONDS,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
