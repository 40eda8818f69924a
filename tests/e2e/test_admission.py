"""Sites that send what cannot be, or too late: each is named with its reason, and the round goes on without it. 5 s."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner

from fedserver.cli import app
from fedserver.server import Server
from fedstream.errors import ProtocolError
from fedstream.manifest import manifest_of
from fedstream.status import from_rpc_error
from fedstream.v1 import admin_pb2, negotiation_pb2, transfer_pb2
from tests.support.bench import SCHEMA
from tests.support.serving import BareSite, administration, body_of, cut, serving
from tests.support.tasks import random_weights

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]

Sites = dict[str, tuple[BareSite, str, str]]
"""Name to the site, its offer id and its upload id."""


@asynccontextmanager
async def a_round_of(folder: Path, *names: str) -> AsyncIterator[tuple[Server, Any, Sites]]:
    """A server with an open round of all these sites, of which three updates make a model."""
    async with AsyncExitStack() as stack:
        settings = {"task": "tests.support.tasks:Shapes", "min_clients": 3, "rounds": 2, "retry_delay_seconds": 0.05}
        server, listening = await stack.enter_async_context(serving(folder, **settings))
        server.federation.pause()
        sites = {name: await stack.enter_async_context(BareSite.dial(listening)) for name in names}
        for name, site in sites.items():
            await site.join(name, server)
        server.federation.resume()
        offers = {name: await site.agree() for name, site in sites.items()}
        yield server, listening, {name: (sites[name], one.offer_id, one.upload_id) for name, one in offers.items()}


async def refusal(awaitable: Any) -> ProtocolError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    error = from_rpc_error(caught.value)
    assert isinstance(error, ProtocolError), error
    return error


async def give_up(site: BareSite, offer_id: str) -> None:
    """A site takes its word back, and is told nothing more of it."""
    await site.say(failure=negotiation_pb2.Failure(offer_id=offer_id))


async def rounds_of(listening: Any, number: int) -> dict[str, admin_pb2.Participation]:
    channel, admin = administration(listening)
    async with channel:
        response = await admin.GetRound(admin_pb2.GetRoundRequest(number=number))
    return {part.client_name: part for part in response.participations}


async def until_failed(server: Server, name: str) -> None:
    round_ = server.federation.round
    assert round_ is not None
    part = round_.of_client(name)
    while part is not None and part.is_outstanding:  # noqa: ASYNC110 - nothing tells a bystander
        await asyncio.sleep(0.01)


HONEST = ("a", "b", "c")
UNFIT = {"nan": 10, "huge": 10, "long": 10, "greedy": 10**9, "none": 0}
"""Name to the number of examples it claims."""


async def test_unfit_updates_are_quarantined_for_their_reasons_and_the_round_succeeds(tmp_path: Path) -> None:
    names = (*HONEST, "greedy", "huge", "long", "nan", "none")
    async with a_round_of(tmp_path, *names) as (_, listening, sites):
        said = {}
        for seed, (name, examples) in enumerate(UNFIT.items(), start=4):
            weights = random_weights(SCHEMA, seed)
            if name == "nan":
                weights["double"] = np.full_like(weights["double"], np.nan)
            if name in ("huge", "long"):
                factor = 1e6 if name == "huge" else 1e3
                weights = {key: (values * factor).astype(values.dtype) for key, values in weights.items()}
            site, _, upload_id = sites[name]
            finished = await site.upload(upload_id, SCHEMA, weights, examples)
            said[name] = (transfer_pb2.UploadState.Name(finished.state), finished.reason.split(":")[0])
        assert said == {
            "nan": ("UPLOAD_STATE_QUARANTINED", "not_finite"),
            "huge": ("UPLOAD_STATE_QUARANTINED", "headroom"),
            "long": ("UPLOAD_STATE_ADMITTED", ""),  # until the round closes, nobody can say what is long
            "greedy": ("UPLOAD_STATE_QUARANTINED", "num_examples"),
            "none": ("UPLOAD_STATE_QUARANTINED", "num_examples"),
        }
        for seed, name in enumerate(HONEST, start=1):
            site, _, upload_id = sites[name]
            finished = await site.upload(upload_id, SCHEMA, random_weights(SCHEMA, seed))
            assert finished.state == transfer_pb2.UPLOAD_STATE_ADMITTED
        outcome = (await sites["a"][0].hear()).round_outcome
        assert (outcome.succeeded, outcome.reason) == (True, "every client has answered")
        parts = await rounds_of(listening, 1)
        listed = {
            name: (negotiation_pb2.Outcome.Name(part.outcome), part.reason.split(":")[0])
            for name, part in parts.items()
        }
        assert listed == {
            **dict.fromkeys(HONEST, ("OUTCOME_COMPLETED", "")),
            "nan": ("OUTCOME_QUARANTINED", "not_finite"),
            "huge": ("OUTCOME_QUARANTINED", "headroom"),
            "long": ("OUTCOME_QUARANTINED", "norm"),
            "greedy": ("OUTCOME_QUARANTINED", "num_examples"),
            "none": ("OUTCOME_QUARANTINED", "num_examples"),
        }
        assert [parts[name].weight for name in HONEST] == [pytest.approx(1 / 3)] * 3
        assert "claimed 10 when it joined, so at most 20 are plausible" in parts["greedy"].reason
        code, output = await run("rounds", "--round", "1", "--state", str(tmp_path / "state"))
        assert (code, "not_finite: tensor 'double' holds nan at index [0]" in output) == (0, True)
        code, output = await run("verify", "--round", "1", "--state", str(tmp_path / "state"))
        assert (code, "round 1 agrees: chain, files, and the aggregate of 3 updates made again" in output) == (
            0,
            True,
        ), output


async def test_update_that_comes_after_its_part_has_ended_is_listed_beside_its_outcome(tmp_path: Path) -> None:
    async with a_round_of(tmp_path, *HONEST, "whole", "never") as (server, listening, sites):
        whole, offer_id, whole_id = sites["whole"]
        weights = random_weights(SCHEMA, 4)
        manifest = manifest_of(SCHEMA, weights)
        missing = (await whole.put_manifest(whole_id, manifest)).missing_tensors
        body = body_of(manifest, weights, missing)
        assert await whole.write(whole_id, cut(body, 500)) == len(body)
        await give_up(whole, offer_id)
        never, offer_id, never_id = sites["never"]
        await give_up(never, offer_id)
        for name in ("whole", "never"):
            await until_failed(server, name)
        finished = await whole.finish(whole_id)
        reason = "stale_round: an update came after its part in round 1 had ended (failed: no reason given)"
        assert finished.state == transfer_pb2.UPLOAD_STATE_QUARANTINED
        assert finished.reason == f"{reason}; it was kept aside"
        assert await whole.finish(whole_id) == finished  # the same again
        error = await refusal(never.put_manifest(never_id, manifest))
        assert (error.reason, error.metadata) == ("ROUND_CLOSED", {"round": "1"})
        for seed, name in enumerate(HONEST, start=1):
            site, _, upload_id = sites[name]
            await site.upload(upload_id, SCHEMA, random_weights(SCHEMA, seed))
        assert (await sites["a"][0].hear()).round_outcome.succeeded
        parts = await rounds_of(listening, 1)
        late = {name: (negotiation_pb2.Outcome.Name(part.outcome), part.late_update) for name, part in parts.items()}
        assert late == {
            **dict.fromkeys(HONEST, ("OUTCOME_COMPLETED", "")),
            "whole": ("OUTCOME_FAILED", f"{reason}; it was kept aside"),
            "never": ("OUTCOME_FAILED", f"{reason}; nothing of it was taken"),
        }
        record = server.federation.history[-1]
        assert sum(record.counts.values()) == record.offered == 5
        assert len(list((tmp_path / "state" / "updates").iterdir())) == 4
        code, output = await run("rounds", "--round", "1", "--state", str(tmp_path / "state"), "--json")
        assert code == 0
        answer = json.loads(output[output.index("{\n") :])  # the server of this process may log meanwhile
        shown = {part["client_name"]: part["late_update"] for part in answer["participations"]}
        assert shown == {name: words for name, (_, words) in late.items()}
    code, output = await run("verify", "--state", str(tmp_path / "state"))
    assert code == 0, output
    code, output = await run("rounds", "--round", "1", "--state", str(tmp_path / "state"))  # without a server
    assert output.count("stale_round: ") == 2


async def test_update_for_a_round_that_is_over_is_refused_and_listed(tmp_path: Path) -> None:
    async with a_round_of(tmp_path, *HONEST, "gone") as (server, listening, sites):
        gone, offer_id, upload_id = sites["gone"]
        await give_up(gone, offer_id)
        await until_failed(server, "gone")
        for seed, name in enumerate(HONEST, start=1):
            site, _, honest_id = sites[name]
            await site.upload(honest_id, SCHEMA, random_weights(SCHEMA, seed))
        assert (await sites["a"][0].hear()).round_outcome.succeeded
        await sites["a"][0].agree()  # the next round is open
        manifest = manifest_of(SCHEMA, random_weights(SCHEMA, 4))
        error = await refusal(gone.put_manifest(upload_id, manifest))
        assert (error.reason, error.message) == ("ROUND_CLOSED", "round 1 is over")
        words = (await rounds_of(listening, 1))["gone"].late_update
        assert words.startswith("stale_round: an update came after its part in round 1 had ended (failed: ")
        error = await refusal(sites["a"][0].put_manifest(sites["a"][2], manifest))
        assert error.reason == "ROUND_CLOSED"
        assert (await rounds_of(listening, 1))["a"].late_update == ""  # its update is in: it only asks again


async def run(*arguments: str) -> tuple[int, str]:
    """A command, in a thread: it may have to ask the server in this process."""
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    return result.exit_code, result.output
