"""What an operator and a report know of the life before a kill: clients, time, models. 30 s."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from fedclient.exit_codes import ExitCode
from fedstream.v1 import admin_pb2, negotiation_pb2
from tests.support.processes import Look, RunningServer, Stage, stage

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(240)]

ROUNDS = 4
"""So many that on a slow machine, where a kill comes a round late, some are left."""
LEFT = ("CLIENT_STATE_LEFT", "stopped by its operator")


@dataclass(frozen=True, slots=True)
class TwoLives:
    """A federation whose server was killed in round 2, or soon after. One site had left before, and never came back."""

    statuses: dict[str, int]
    first_start: float
    second_start: float
    status: Any
    rounds_of_server: Any
    rounds: Any
    summary: dict[str, Any]


def is_training_for_round_two(look: Look) -> bool:
    training = negotiation_pb2.PHASE_TRAINING
    at_work = look.rounds_over == 1 and look.state.round.number == 2
    return at_work and all(part.phase == training for part in look.parts.values())


def started(server: RunningServer) -> float:
    with server.administration() as stub:
        return stub.GetState(admin_pb2.GetStateRequest()).started.ToNanoseconds() / 1e9


def let_one_leave(scene: Stage, server: RunningServer) -> int:
    """A site joins while the federation is paused, and is stopped by its operator; its exit status."""
    with server.administration() as stub:
        stub.Pause(admin_pb2.PauseRequest())
        leaver = scene.client("leaver", server.listening, shard="2/3")
        server.until("the site that leaves", lambda look: look.clients.get("leaver") == "idle")
        leaver.process.send_signal(signal.SIGINT)
        server.until("it to have left", lambda look: look.clients["leaver"] == "left")
        stub.Resume(admin_pb2.ResumeRequest())
    return leaver.wait()


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoLives]:
    with stage(tmp_path_factory.mktemp("lives")) as scene:
        options = ["--holdout", "phantom", "--rounds", str(ROUNDS), "--min-clients", "2", "--task-set", "seconds=1"]
        first = scene.server(*options)
        first_start, left = started(first), let_one_leave(scene, first)
        sites = {
            f"site_{number}": scene.client(f"site_{number}", first.listening, shard=f"{number}/3") for number in (0, 1)
        }
        first.until("round 2 in training", is_training_for_round_two)
        first.process.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL

        second = scene.server(*options, listen=first.listening.address)
        second_start = started(second)
        with second.administration() as stub:
            stub.Pause(admin_pb2.PauseRequest())  # so that there is all the time to look
        second.until("the pause", lambda look: look.state.state == admin_pb2.FEDERATION_STATE_PAUSED)
        state = ["--state", str(second.state)]
        status = scene.command("fedserver", "status", *state, "--json").json
        rounds_of_server = scene.command("fedserver", "rounds", *state, "--json").json["rounds"]
        with second.administration() as stub:
            stub.Resume(admin_pb2.ResumeRequest())
        statuses = {"leaver": left, **{name: site.wait() for name, site in sites.items()}, "server": second.wait()}
        rounds = scene.command("fedserver", "rounds", *state, "--json").json["rounds"]
        yield TwoLives(statuses, first_start, second_start, status, rounds_of_server, rounds, second.summary)


def test_federation_ends_well_after_the_kill(lives: TwoLives) -> None:
    assert lives.statuses == {"leaver": ExitCode.INTERRUPTED, "site_0": 0, "site_1": 0, "server": 0}
    assert [one["succeeded"] for one in lives.rounds] == [True] * ROUNDS


def test_clients_of_the_life_before_are_listed_by_the_server_and_in_the_report(lives: TwoLives) -> None:
    listed = {one["name"]: (one["state"], one["reason"]) for one in lives.status["clients"]}
    assert (sorted(listed), listed["leaver"]) == (["leaver", "site_0", "site_1"], LEFT)
    (leaver,) = [one for one in lives.status["clients"] if one["name"] == "leaver"]
    assert int(leaver["num_examples"]) > 0
    seen = [datetime.fromisoformat(leaver[field]).timestamp() for field in ("first_seen", "last_seen")]
    assert lives.first_start < seen[0] < seen[1] < lives.second_start
    told = {one["name"]: (one["state"], one["reason"]) for one in lives.summary["details"]["clients"]}
    assert (sorted(told), told["leaver"]) == (["leaver", "site_0", "site_1"], ("left", LEFT[1]))


def test_report_covers_both_lives_and_not_the_time_between(lives: TwoLives) -> None:
    details = lives.summary["details"]
    start, end = (datetime.fromisoformat(details[field]).timestamp() for field in ("started", "ended"))
    assert start == pytest.approx(lives.first_start, abs=1.0)
    of_second_life, first_round = end - lives.second_start, details["rounds"][0]["duration_seconds"]
    assert of_second_life + first_round < lives.summary["duration_seconds"] < end - start


def test_rounds_name_the_models_they_started_from_and_made(lives: TwoLives) -> None:
    known = len(lives.rounds_of_server)
    assert known >= 2
    assert lives.rounds_of_server == lives.rounds[:known]
    for number, one in enumerate(lives.rounds, start=1):
        assert (one["base_model"]["version"], one["global_model"]["version"]) == (number - 1, number)
    for before, after in pairwise(lives.rounds):
        assert before["global_model"] == after["base_model"]
    digests = [lives.rounds[0]["base_model"], *(one["global_model"] for one in lives.rounds)]
    assert len({one["model_digest"]["sha256"] for one in digests}) == ROUNDS + 1
