"""How federations end: early, untested, tested, without clients, after failed rounds, with updates kept aside."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import load_file

from fedserver.exit_codes import ExitCode
from fedserver.server import Server
from fedserver.services import negotiation
from fedstream.schema import ModelSchema
from fedstream.v1 import negotiation_pb2, transfer_pb2
from fedtask.report.record import OUTCOMES
from tests.support.negotiating import members, parts_of
from tests.support.processes import Stage
from tests.support.serving import BareSite
from tests.support.tasks import random_weights

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]


def schema_of(server: Server) -> ModelSchema:
    return server.federation.schema


def summary_in(folder: Path) -> Any:
    """The summary of the report in a folder."""
    return json.loads((folder / "report" / "summary.json").read_text())


async def bring_base(site: BareSite, server: Server) -> negotiation_pb2.Offer:
    """Take the next offer and bring its base model back unchanged."""
    offer = await site.agree()
    finished = await site.upload(offer.upload_id, schema_of(server), server.federation.model.weights())
    assert finished.state == transfer_pb2.UPLOAD_STATE_ADMITTED
    return offer


async def close(site: BareSite) -> str:
    """Hear how the federation ended, and close the stream as a client does."""
    farewell = (await site.hear()).federation_outcome
    await site.stream.done_writing()
    assert await site.stream.read() is grpc.aio.EOF
    reason: str = farewell.reason
    return reason


async def test_federation_that_no_longer_gets_better_stops_early_and_keeps_its_best_model(tmp_path: Path) -> None:
    settings = {"rounds": 9, "early_stopping_rounds": 2, "holdout": "phantom"}
    async with members(tmp_path, ("alpha",), **settings) as (server, _, alpha):
        for number in (1, 2, 3):  # each gives the model it got: no round after the first is better
            assert (await bring_base(alpha, server)).round == number
            assert (await alpha.hear()).round_outcome.succeeded
        reason = "early stopping: no better holdout score for 2 rounds; the best was round 1"
        assert await close(alpha) == reason
    summary = summary_in(tmp_path / "out")
    assert (summary["rounds"], summary["best_round"], summary["last_round"]) == (3, 1, 3)
    assert (summary["details"]["outcome"], summary["details"]["early_stop_reason"]) == ("finished", reason)
    assert summary["details"]["outcome_reason"] == reason


def write_test_set(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A test set of 40 examples whose labels have nothing to do with what is learned."""
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((40, 10)), rng.integers(0, 2, 40)
    folder.mkdir()
    np.savez(folder / "holdout.npz", x=x, y=y)
    return x, y


async def test_test_set_scores_the_best_model_and_chooses_nothing(tmp_path: Path) -> None:
    x, y = write_test_set(tmp_path / "unseen")
    settings = {"rounds": 2, "holdout": "phantom", "test": str(tmp_path / "unseen")}
    async with members(tmp_path, ("alpha",), **settings) as (server, _, alpha):
        for number in (1, 2):
            offer = await alpha.agree()
            schema = schema_of(server)
            await alpha.upload(offer.upload_id, schema, random_weights(schema, number))
            assert (await alpha.hear()).round_outcome.succeeded
        assert await close(alpha) == "all 2 rounds done"
    summary = summary_in(tmp_path / "out")
    best = load_file(tmp_path / "out" / "models" / "GLOBAL_MODEL.safetensors")
    accuracy = float(np.mean((x @ best["weights"] + best["bias"] > 0) == y))
    tested = summary["test_evaluation"]
    assert (tested["num_examples"], tested["metrics"]["accuracy"]) == (40, pytest.approx(accuracy))
    scores = [one["evaluation"]["metrics"]["accuracy"] for one in summary["details"]["rounds"]]
    assert [one["evaluation"]["num_examples"] for one in summary["details"]["rounds"]] == [500, 500]
    assert (summary["accuracy"], summary["best_round"]) == (max(scores), 1 + scores.index(max(scores)))
    assert summary["score_used_for_choosing"] is False
    assert summary["details"]["test"]["source"] == "unseen"


def test_server_whose_test_set_is_not_there_says_so_before_the_first_round(scene: Stage) -> None:
    run = ("fedserver", "run", "--task", "linear", "--listen", "127.0.0.1:0", "--state", "state", "--out", "out")
    said = scene.command(*run, "--test", "nowhere")
    assert said.status == ExitCode.FAILED
    assert "--test nowhere is no folder" in said.out + said.err


def test_federation_that_nobody_joins_ends_with_a_report_of_no_rounds(scene: Stage) -> None:
    server = scene.server("--min-clients", "2", "--join-timeout-seconds", "1", "--holdout", "phantom", "--log-json")
    assert server.wait() == ExitCode.FAILED
    [last] = server.said("finished, but not all was made")
    assert (last["missing"], last["reason"]) == ("a model of any round", "2 clients did not join within 1 s")
    summary = server.summary
    assert (summary["rounds"], summary["best_round"], summary["accuracy"], summary["counts"]) == (0, None, None, {})
    assert summary["details"]["outcome_reason"] == "2 clients did not join within 1 s"
    models = sorted(path.name for path in (server.out / "models").iterdir())
    assert models == ["GLOBAL_MODEL.safetensors", "GLOBAL_MODEL_last.safetensors"]


def test_federation_whose_report_and_models_cannot_be_written_names_them_and_ends_as_failed(scene: Stage) -> None:
    out = scene.folder / "server" / "out"
    server = scene.server("--min-clients", "2", "--join-timeout-seconds", "1", "--log-json")
    out.rmdir()  # which was made at the start
    out.write_text("no folder")  # whoever the user is: nothing can be written below a file
    assert server.wait() == ExitCode.FAILED
    [last] = server.said("finished, but not all was made")
    assert (last["missing"], last["reason"]) == (
        "report and models and a model of any round",
        "2 clients did not join within 1 s",
    )
    assert "report" not in last


def test_federation_whose_test_set_cannot_be_read_makes_the_rest_and_ends_as_failed(scene: Stage) -> None:
    (scene.folder / "unseen").mkdir()
    (scene.folder / "unseen" / "holdout.npz").write_bytes(b"no archive")
    few = ("--min-clients", "2", "--join-timeout-seconds", "1", "--log-json")
    server = scene.server(*few, "--test", str(scene.folder / "unseen"))
    assert server.wait() == ExitCode.FAILED
    [last] = server.said("finished, but not all was made")
    assert last["missing"] == "score on the test set and a model of any round"
    assert server.summary["test_evaluation"] is None
    assert (server.out / "models" / "GLOBAL_MODEL.safetensors").exists()


async def test_round_that_everybody_declines_fails_and_the_next_one_goes_on_from_the_same_model(tmp_path: Path) -> None:
    async with members(tmp_path, ("alpha", "beta"), min_clients=2, holdout="phantom") as (server, _, alpha, beta):
        first = [(await site.hear()).offer for site in (alpha, beta)]
        for site, offer in zip((alpha, beta), first, strict=True):
            await site.say(decline=negotiation_pb2.Refusal(offer_id=offer.offer_id, reason="busy"))
        failed = (await alpha.hear()).round_outcome
        assert (failed.succeeded, failed.outcome) == (False, negotiation_pb2.OUTCOME_DECLINED)
        assert failed.reason.startswith("0 of at least 2 updates: ")
        assert failed.global_model == first[0].base_model
        assert (await beta.hear()).round_outcome.reason == failed.reason
        second = [await bring_base(site, server) for site in (alpha, beta)]
        assert [(offer.round, offer.base_model) for offer in second] == [(2, first[0].base_model)] * 2
        assert (await alpha.hear()).round_outcome.succeeded
    summary = summary_in(tmp_path / "out")
    zero = dict.fromkeys(OUTCOMES, 0)
    assert summary["counts"]["2"] == {**zero, "offered": 2, "completed": 2}
    assert summary["counts"]["1"] in (
        {**zero, "offered": 2, "declined": 2},
        {**zero, "offered": 2, "declined": 1, "cancelled": 1},  # with one answer in, two updates are out of reach
    )
    assert summary["best_round"] == 2


async def test_update_that_is_not_finite_is_kept_aside_and_the_counts_add_up(tmp_path: Path) -> None:
    async with members(tmp_path, ("alpha", "beta", "broken"), min_clients=2, rounds=1) as (server, _, *sites):
        schema = schema_of(server)
        offers = [await site.agree() for site in sites]
        for number, (site, offer) in enumerate(zip(sites, offers, strict=True)):
            weights = random_weights(schema, number)
            if number == 2:
                weights["bias"] = np.array(np.inf, np.float32)
            await site.upload(offer.upload_id, schema, weights, num_examples=10)
        reason = "every client has answered"
        outcomes = [(await site.hear()).round_outcome for site in sites]
        assert [(one.succeeded, one.reason) for one in outcomes] == [(True, reason)] * 3
        assert parts_of(server, 1)["alpha"] == parts_of(server, 1)["beta"] == ("completed", "")
        kept_aside, why = parts_of(server, 1)["broken"]
        assert (kept_aside, why.partition(":")[0]) == ("quarantined", "not_finite")
        assert outcomes[2].outcome_reason == why
        shares = [one.weight for one in server.federation.history[0].contributions]
        assert shares == [0.5, 0.5, None]
        for site in sites:
            assert await close(site) == "all 1 rounds done"
    zero = dict.fromkeys(OUTCOMES, 0)
    counts = {**zero, "offered": 3, "completed": 2, "quarantined": 1}
    assert summary_in(tmp_path / "out")["counts"] == {"1": counts}


async def test_site_on_a_slow_line_has_the_time_that_the_final_model_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negotiation, "_FAREWELL_SECONDS", 2.0)
    async with members(tmp_path, ("alpha",), rounds=1) as (server, _, alpha):
        await bring_base(alpha, server)
        assert (await alpha.hear()).round_outcome.succeeded
        farewell = (await alpha.hear()).federation_outcome
        for _ in range(5):
            await asyncio.sleep(0.5)
            await alpha.say(progress=negotiation_pb2.Progress(offer_id="no offer"))
        body = await alpha.download(farewell.best_model.model_digest.sha256)
        assert len(body) == server.federation.model.manifest.size_bytes
        await alpha.stream.done_writing()
        assert await alpha.stream.read() is grpc.aio.EOF
        assert await alpha.stream.code() is grpc.StatusCode.OK
