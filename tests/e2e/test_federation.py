"""Whole federations of processes: to the end, with a site that dies and one that does not fit, and over a restart."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from fedclient.exit_codes import ExitCode
from fedstream.v1 import admin_pb2, negotiation_pb2
from fedtask.report.record import OUTCOMES
from tests.support.processes import Running, RunningServer, Stage, stage
from tests.support.serving import serving
from tests.support.sites import OWN_TASK, write_task

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(240)]

SITES = ("site_0", "site_1", "site_2")
ROUNDS, EPOCHS = 4, 3
MODEL_BYTES = 44  # ten weights and a bias, float32
PNG = b"\x89PNG\r\n\x1a\n"


def counts(**ended: int) -> dict[str, int]:
    """What a round's record says of its offers; the offers made are the sum, as in any round that is over."""
    return {"offered": sum(ended.values()), **{outcome: ended.get(outcome, 0) for outcome in OUTCOMES}}


@dataclass(frozen=True, slots=True)
class Federation:
    """A federation that is over: its processes, and how they ended."""

    scene: Stage
    server: RunningServer
    clients: dict[str, Running]
    statuses: dict[str, int]


def start_sites(scene: Stage, server: RunningServer, *, pictures: bool = False) -> dict[str, Running]:
    return {
        name: scene.client(name, server.listening, shard=f"{number}/{len(SITES)}", pictures=pictures)
        for number, name in enumerate(SITES)
    }


def see_the_end(scene: Stage, server: RunningServer, clients: dict[str, Running]) -> Federation:
    statuses = {name: client.wait() for name, client in clients.items()}
    return Federation(scene, server, clients, {"server": server.wait(), **statuses})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Three clients, four rounds, nothing goes wrong."""
    with stage(tmp_path_factory.mktemp("whole")) as scene:
        options = ("--holdout", "phantom", "--rounds", str(ROUNDS), "--min-clients", "3")
        server = scene.server(*options, pictures=True)
        yield see_the_end(scene, server, start_sites(scene, server, pictures=True))


def test_federation_of_processes_ends_well_for_everyone(finished: Federation) -> None:
    assert finished.statuses == {"server": 0, "site_0": 0, "site_1": 0, "site_2": 0}
    for client in finished.clients.values():
        assert f"federation finished: all {ROUNDS} rounds done" in client.text


def test_summary_leads_with_the_best_model_and_its_counts_add_up(finished: Federation) -> None:
    summary = finished.server.summary
    rounds = summary["details"]["rounds"]
    scores = [(one["evaluation"]["metrics"]["accuracy"], -one["evaluation"]["metrics"]["loss"]) for one in rounds]
    best = scores.index(max(scores))
    leading = ["accuracy", "loss", "best_round", "rounds", "duration_seconds", "bytes_moved"]
    assert list(summary)[: len(leading)] == leading
    assert {key: summary[key] for key in leading if key != "duration_seconds"} == {
        "accuracy": scores[best][0],
        "loss": -scores[best][1],
        "best_round": best + 1,
        "rounds": ROUNDS,
        "bytes_moved": 2 * MODEL_BYTES * len(SITES) * ROUNDS,
    }
    assert scores[best][0] >= 0.9
    assert summary["duration_seconds"] >= sum(one["duration_seconds"] for one in rounds)
    assert summary["counts"] == {str(number): counts(completed=3) for number in range(1, ROUNDS + 1)}
    assert summary["details"]["outcome_reason"] == f"all {ROUNDS} rounds done"
    assert summary["details"]["training_data_synthetic"] is True


def test_report_and_models_are_where_they_are_promised(finished: Federation) -> None:
    out = finished.server.out
    pictures = {"calibration", "confusion_matrix", "contributions", "global_progress", "roc"}
    report = {f"report/{name}.png" for name in pictures} | {"report/report.html", "report/summary.json"}
    models = {"models/GLOBAL_MODEL.safetensors", "models/GLOBAL_MODEL_last.safetensors"}
    events = {path for path in out.rglob("*tfevents*") if path.parent == out / "report" / "tensorboard"}
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path not in events}
    assert (files, len(events)) == (report | models, 1)
    assert all((out / name).read_bytes().startswith(PNG) for name in report if name.endswith(".png"))
    page = (out / "report" / "report.html").read_text()
    assert [name for name in SITES if name not in page] == []
    listed = {file["name"]: file["size_bytes"] for file in finished.server.summary["details"]["model_files"]}
    assert listed == {Path(name).name: (out / name).stat().st_size for name in models}


@pytest.mark.parametrize("name", SITES)
def test_client_leaves_its_model_its_history_and_the_final_model(finished: Federation, name: str) -> None:
    folder = finished.scene.folder / name
    rows = finished.scene.history(name)
    places = [(row["round"], row["epoch"]) for row in rows]
    assert places == [(str(r), str(e)) for r in range(1, ROUNDS + 1) for e in range(1, EPOCHS + 1)]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(rows[0])
    assert (folder / f"client_{name}_training_history.png").read_bytes().startswith(PNG)
    trained = load_file(folder / f"client_{name}_model.safetensors")
    assert {tensor: values.shape for tensor, values in trained.items()} == {"weights": (10,), "bias": ()}
    best = finished.server.out / "models" / "GLOBAL_MODEL.safetensors"
    assert (folder / "GLOBAL_MODEL.safetensors").read_bytes() == best.read_bytes()


def test_rounds_of_a_finished_federation_are_listed_without_a_server(finished: Federation) -> None:
    state = str(finished.server.state)
    listed = finished.scene.command("fedserver", "rounds", "--state", state, "--json").json["rounds"]
    over = {"phase": "ROUND_PHASE_DONE", "succeeded": True, "reason": "reporting goal of 3 reached"}
    expected = [{"number": n, **over, "counts": {**counts(completed=3), "outstanding": 0}} for n in (1, 2, 3, 4)]
    assert [{key: one[key] for key in expected[0]} for one in listed] == expected
    detail = finished.scene.command("fedserver", "rounds", "--state", state, "--round", "2", "--json").json
    parts = [(part["client_name"], part["rank"], part["outcome"], part["weight"]) for part in detail["participations"]]
    assert parts == [(name, rank, "OUTCOME_COMPLETED", 1 / 3) for rank, name in enumerate(SITES)]
    table = finished.scene.command("fedserver", "rounds", "--state", state)
    assert (table.status, table.out.count("new model"), table.out.count("3 = 3 completed")) == (0, ROUNDS, ROUNDS)
    missing = finished.scene.command("fedserver", "rounds", "--state", state, "--round", "9")
    assert (missing.status, missing.err) == (2, f"fedserver: there is no round 9 in {state}\n")


def test_status_of_a_finished_federation_says_that_it_is_over(finished: Federation) -> None:
    said = finished.scene.command("fedserver", "status", "--state", str(finished.server.state))
    message = (
        f"no server runs on {finished.server.state}, and its federation is over (all 4 rounds done): 4 rounds were run"
    )
    message = f"{message}; `fedserver rounds` shows them"
    assert (said.status, said.out, said.err) == (4, "", f"fedserver: {message}\n")


async def test_federation_starts_from_the_model_of_an_earlier_one(finished: Federation, tmp_path: Path) -> None:
    earlier = finished.server.out / "models" / "GLOBAL_MODEL.safetensors"
    async with serving(tmp_path, initial_model=earlier) as (server, _):
        model = server.federation.model
        begun, expected = model.weights(), load_file(earlier)
        assert {name: values.tobytes() for name, values in begun.items()} == {
            name: values.tobytes() for name, values in expected.items()
        }
        assert model.version == 0


def test_server_killed_in_mid_round_goes_on_where_it_was_to_the_same_model(finished: Federation, scene: Stage) -> None:
    options = ["--holdout", "phantom", "--rounds", str(ROUNDS), "--min-clients", "3", "--task-set", "seconds=1.2"]
    first = scene.server(*options)
    clients = start_sites(scene, first)

    def is_training_for_round_three(look: Any) -> bool:
        at_work = look.rounds_over == 2 and look.state.round.number == 3
        return at_work and all(part.phase == negotiation_pb2.PHASE_TRAINING for part in look.parts.values())

    first.until("round 3 in training", is_training_for_round_three)
    first.process.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = scene.server(*options, listen=first.listening.address)
    assert second.listening.fingerprint == first.listening.fingerprint
    again = see_the_end(scene, second, clients)
    assert again.statuses == {"server": 0, "site_0": 0, "site_1": 0, "site_2": 0}
    assert again.server.summary["counts"] == finished.server.summary["counts"]
    last = Path("models") / "GLOBAL_MODEL_last.safetensors"
    assert (second.out / last).read_bytes() == (finished.server.out / last).read_bytes()
    for name, client in clients.items():
        assert [line["round"] for line in client.said("trained")] == [1, 2, 3, 4]
        assert len(scene.history(name)) == ROUNDS * EPOCHS


@dataclass(frozen=True, slots=True)
class Mishap:
    """A federation with one good site, one that is killed in training and one with another version of the model."""

    server: RunningServer
    statuses: dict[str, int]
    odd: Running
    status: Any
    status_table: str
    first_round: Any
    rounds: Any


@pytest.fixture(scope="module")
def mishap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mishap]:
    """Two rounds; the second opens when everything has been looked at."""
    with stage(tmp_path_factory.mktemp("mishap")) as scene:
        here = write_task(scene.folder / "here")
        there = write_task(scene.folder / "there", tensors="2", tensor_kib="2")
        task = ["--task", OWN_TASK]
        server = scene.server(
            *("--holdout", "phantom", "--rounds", "2", "--min-clients", "1", "--lease-seconds", "4"),
            task=OWN_TASK,
            python_path=here,
            tensors=1,
            tensor_kib=1,
            seconds=3,  # of training, in which the victim must be found at it on a busy machine too
        )
        admin = ["--state", str(server.state)]
        assert scene.command("fedserver", "pause", *admin).status == 0
        good = scene.client("good", server.listening, *task, python_path=here, shard="0/2")
        victim = scene.client("victim", server.listening, *task, python_path=here, shard="1/2")
        odd = scene.client("odd", server.listening, *task, python_path=there)
        declined = odd.wait()
        server.until("two sites", lambda look: look.clients.get("good") == look.clients.get("victim") == "idle")
        assert scene.command("fedserver", "resume", *admin).status == 0

        def is_training(look: Any) -> bool:
            return "victim" in look.parts and look.parts["victim"].phase == negotiation_pb2.PHASE_TRAINING

        server.until("the first round", lambda look: "victim" in look.parts)
        with server.administration() as stub:
            stub.Pause(admin_pb2.PauseRequest())  # so that there is all the time to look after this round
        server.until("the victim in training", is_training)
        victim.process.send_signal(signal.SIGKILL)
        server.until("the end of round 1", lambda look: look.rounds_over == 1)
        status = scene.command("fedserver", "status", *admin, "--json").json
        table = scene.command("fedserver", "status", *admin).out
        first = scene.command("fedserver", "rounds", *admin, "--round", "1", "--json").json
        assert scene.command("fedserver", "resume", *admin).status == 0
        statuses = {"odd": declined, "victim": victim.wait(), "good": good.wait(), "server": server.wait()}
        rounds = scene.command("fedserver", "rounds", *admin, "--json").json["rounds"]
        yield Mishap(server, statuses, odd, status, table, first, rounds)


DIFFERENCE = (
    "the client's model differs from the federation's in 2 tensors. The first: server has further_00000 float32 (256,) "
    "trainable, client has further_00000 float32 (512,) trainable. "
    "Use the same task, version and settings on both sides"
)


def is_silence(reason: str) -> bool:
    """Whether it says for how long nothing was heard: at least the lease, and not for ever."""
    told = re.fullmatch(r"no sign of life for (\d+) s", reason)
    return told is not None and 4 <= int(told[1]) < 90


def test_rounds_go_on_without_the_site_that_died_and_the_one_that_does_not_fit(mishap: Mishap) -> None:
    ended = {"odd": ExitCode.DECLINED, "victim": -signal.SIGKILL, "good": 0, "server": 0}
    assert mishap.statuses == ended
    assert mishap.server.summary["counts"] == {"1": counts(completed=1, expired=1), "2": counts(completed=1)}
    made = [(one["number"], one["succeeded"], one["reason"], one["counts"]) for one in mishap.rounds]
    assert made == [
        (1, True, "every client has answered", {**counts(completed=1, expired=1), "outstanding": 0}),
        (2, True, "reporting goal of 1 reached", {**counts(completed=1), "outstanding": 0}),
    ]


def test_site_with_another_schema_is_shown_the_differing_tensors(mishap: Mishap) -> None:
    shown = mishap.odd.text[mishap.odd.text.index("fedclient: ") :]
    assert shown.splitlines() == [
        f"fedclient: the server declined this client: {DIFFERENCE}",
        "",
        "  tensor         this client               the federation",
        "  further_00000  float32 (512,) trainable  float32 (256,) trainable",
        "  further_00001  float32 (512,) trainable  (none)",
    ]


def test_status_says_what_became_of_each_site(mishap: Mishap) -> None:
    clients = {one["name"]: (one["state"], one["reason"], one["rounds_completed"]) for one in mishap.status["clients"]}
    assert clients == {
        "good": ("CLIENT_STATE_IDLE", "", 1),
        "odd": ("CLIENT_STATE_DECLINED", DIFFERENCE, 0),
        "victim": ("CLIENT_STATE_DISCONNECTED", "the connection was lost", 0),
    }
    assert (mishap.status["state"], mishap.status["clients_connected"]) == ("FEDERATION_STATE_PAUSED", 1)
    assert mishap.status["reason"] == "paused by the coordinator; `fedserver resume` goes on"
    assert mishap.status["round"]["counts"] == {**counts(completed=1, expired=1), "outstanding": 0}
    for words in ("declined", "disconnected", "expired", "no sign of life", "further_00000"):
        assert words in mishap.status_table


def test_round_says_what_became_of_each_offer(mishap: Mishap) -> None:
    good, victim = mishap.first_round["participations"]
    assert (good["client_name"], good["outcome"], good["weight"]) == ("good", "OUTCOME_COMPLETED", 1.0)
    assert (victim["client_name"], victim["outcome"], victim["weight"]) == ("victim", "OUTCOME_EXPIRED", 0.0)
    assert is_silence(victim["reason"])


def test_report_says_what_became_of_each_site(mishap: Mishap) -> None:
    details = mishap.server.summary["details"]
    clients = {one["name"]: (one["state"], one["reason"]) for one in details["clients"]}
    assert clients["odd"] == ("declined", DIFFERENCE)
    assert clients["victim"] == ("disconnected", "the connection was lost")
    offers = [(one["client_name"], one["outcome"]) for one in details["rounds"][0]["contributions"]]
    assert offers == [("good", "completed"), ("victim", "expired")]
    assert is_silence(details["rounds"][0]["contributions"][1]["reason"])
    page = (mishap.server.out / "report" / "report.html").read_text()
    for words in ("further_00000", "no sign of life for", "declined", "expired", "victim", "odd"):
        assert words in page
