"""Whole clients against a server that follows a script: the work of rounds, whatever comes in between."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from fedclient import workplace
from fedclient.exit_codes import ExitCode
from fedclient.keepsakes import Keepsakes
from fedclient.reply import SAFETY
from fedclient.sealed import unseal
from fedstream.v1 import negotiation_pb2
from fedtask import history_picture
from tests.support.scripted import SETTINGS, Scripted, Talk, scripted
from tests.support.sessions import count, deliver, finished, last_round, run, stopped, until

pytestmark = pytest.mark.numpy_task

SLOW = {**SETTINGS, "seconds": "0.6"}


async def test_session_of_one_round_trains_uploads_and_saves_everything(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def script(talk: Talk) -> None:
        hello = await talk.welcome()
        assert (hello.client_name, hello.num_examples) == ("site", 170)
        assert hello.schema_sha256 == here[0].schema.digest()
        assert (hello.limits.max_epochs, hello.limits.max_training_time.seconds) == (5, 7200)
        await deliver(talk, here[0])
        await talk.end(here[0].base)

    async with scripted(script) as server:
        here.append(server)
        text, logs = await run(server.client(tmp_path, max_epochs=5, max_hours=2, pictures=True))

    out = tmp_path / "out"
    assert text.splitlines()[0] == "federation finished: all rounds done"
    assert sorted(path.name for path in out.iterdir()) == [
        "GLOBAL_MODEL.safetensors",
        "client_site_model.safetensors",
        "client_site_training_history.csv",
        "client_site_training_history.png",
    ]
    lines = (out / "client_site_training_history.csv").read_text().splitlines()
    assert (lines[0].split(",")[:2], len(lines)) == (["round", "epoch"], 3)
    assert count(logs, "trained") == 1
    left = sorted(path.name for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert left == ["ending.json", "lock", "memory.json"]


async def test_session_with_a_limit_on_rounds_leaves_after_the_last_that_it_allows(tmp_path: Path) -> None:
    here: list[Scripted] = []
    left: list[str] = []

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await deliver(talk, here[0])
        left.append((await talk.hear("leave")).reason)

    async with scripted(script) as server:
        here.append(server)
        text, logs = await run(server.client(tmp_path, max_rounds=1))

    assert left == ["this site takes part in at most 1 rounds"]
    assert text.startswith("left: this site takes part in at most 1 rounds. The federation goes on")
    assert count(logs, "trained") == 1
    assert (tmp_path / "out" / "client_site_model.safetensors").exists()


async def test_session_after_a_restart_remembers_the_limit_declines_and_leaves(tmp_path: Path) -> None:
    here: list[Scripted] = []
    said: list[str] = []

    first = last_round(here)

    async def second(talk: Talk) -> None:
        await talk.welcome()
        await talk.offer(here[0].base, number=2)
        said.append((await talk.hear("decline")).reason)
        said.append((await talk.hear("leave")).reason)

    async with scripted(first, second) as server:
        here.append(server)
        await run(server.client(tmp_path, max_rounds=1))
        text, _ = await run(server.client(tmp_path, max_rounds=1))

    assert said == ["this site takes part in at most 1 rounds"] * 2
    assert text.startswith("left: ")


async def test_limit_on_rounds_holds_whatever_number_a_server_gives_to_a_round(tmp_path: Path) -> None:
    here: list[Scripted] = []
    said: list[str] = []

    async def script(talk: Talk) -> None:
        await talk.welcome(rounds=1)
        await deliver(talk, here[0])
        await talk.offer(here[0].base, number=2, said_to_be=1)
        said.append((await talk.hear("decline")).reason)
        said.append((await talk.hear("leave")).reason)

    async with scripted(script) as server:
        here.append(server)
        _, logs = await run(server.client(tmp_path, max_rounds=1))

    assert said == ["this site takes part in at most 1 rounds"] * 2
    assert count(logs, "trained") == 1


async def test_update_that_was_sent_is_sent_again_whatever_the_limit_on_rounds(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def script(talk: Talk) -> None:
        await talk.welcome(rounds=1)
        await deliver(talk, here[0])
        here[0].transfer.uploads.clear()  # it was damaged there
        await deliver(talk, here[0])
        await talk.end(here[0].base)

    async with scripted(script) as server:
        here.append(server)
        text, logs = await run(server.client(tmp_path, max_rounds=1))

    assert text.startswith("federation finished")
    assert count(logs, "trained") == 1


async def test_plan_of_more_epochs_than_were_agreed_on_is_not_trained(tmp_path: Path) -> None:
    here: list[Scripted] = []
    said: list[str] = []

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await talk.offer(here[0].base, epochs=9)
        assert (await talk.hear("counter_offer")).epochs == 2
        await talk.confirm(epochs=3)
        said.append((await talk.hear("failure")).reason)
        await talk.offer(here[0].base, number=2, epochs=2)
        await talk.hear("accept")
        await talk.confirm(number=2, epochs=2)
        await until(lambda: "upload-2" in here[0].transfer.uploads and finished(here[0], 2))
        await asyncio.sleep(0.2)
        await talk.end(here[0].base)

    async with scripted(script) as server:
        here.append(server)
        text, logs = await run(server.client(tmp_path, max_epochs=2))

    assert said == ["3 epochs were confirmed, and 2 agreed on"]
    assert text.startswith("federation finished")
    assert [event["epochs"] for event in logs if event["event"] == "trained"] == [2]


@pytest.mark.parametrize(
    ("report", "told"),
    [
        ("all", {"accuracy", "base_accuracy", "base_loss", "loss", "val_accuracy", "val_loss"}),
        ("none", set()),
        ("loss,base_loss", {"loss", "base_loss"}),
    ],
)
async def test_session_reports_the_metrics_that_the_site_allows(tmp_path: Path, report: str, told: set[str]) -> None:
    here: list[Scripted] = []

    script = last_round(here)

    async with scripted(script) as server:
        here.append(server)
        await run(server.client(tmp_path, report=report))

    header = here[0].transfer.uploads["upload-1"].header
    assert {metric.name for metric in header.metrics} == told
    kept = (tmp_path / "out" / "client_site_training_history.csv").read_text().splitlines()[0]
    assert "val_accuracy" in kept  # what stays here is whole


async def test_session_with_a_limit_on_examples_says_so_in_hello_and_update(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def script(talk: Talk) -> None:
        assert (await talk.welcome()).num_examples == 30
        await deliver(talk, here[0])
        await talk.end(here[0].base)

    async with scripted(script) as server:
        here.append(server)
        await run(server.client(tmp_path, max_examples=30))

    assert here[0].transfer.uploads["upload-1"].header.num_examples == 30


async def test_session_with_a_task_that_heeds_no_limit_on_examples_is_not_begun(tmp_path: Path) -> None:
    async with scripted() as server:
        server.negotiation.task = "tests.support.tasks:Shapes"
        server.negotiation.settings = {}
        stop = await stopped(server.client(tmp_path, max_examples=9, task="tests.support.tasks:Shapes"))

    assert stop.code is ExitCode.BAD_DATA
    assert stop.message.startswith("this task would use 10 examples, more than --max-examples allows")


async def test_session_whose_picture_takes_long_goes_on_with_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[Scripted] = []
    drawn: list[bool] = []
    delivered = asyncio.Event()

    async def draw(_table: Path, _png: Path, _title: str, *, hurry: bool) -> None:
        await delivered.wait()
        drawn.append(hurry)

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await deliver(talk, here[0], number=1)
        await deliver(talk, here[0], number=2)
        delivered.set()
        await talk.end(here[0].base)

    monkeypatch.setattr(history_picture, "draw", draw)
    monkeypatch.setattr(workplace, "Keepsakes", partial(Keepsakes, picture_pause_seconds=0.0))
    async with scripted(script) as server:
        here.append(server)
        _, logs = await run(server.client(tmp_path, pictures=True))

    assert count(logs, "trained") == 2
    assert (len(drawn), drawn[0]) == (2, False)


async def test_session_cut_while_training_goes_on_and_does_not_train_again(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def first(talk: Talk) -> None:
        await talk.welcome()
        await talk.agree(here[0].base)
        await talk.hear("progress")
        await talk.cut()

    second = last_round(here)

    async with scripted(first, second, settings=SLOW) as server:
        here.append(server)
        _, logs = await run(server.client(tmp_path))

        assert server.transfer.calls.count("FinishUpload") == 1
    assert count(logs, "training") > 0
    assert count(logs, "trained") == 1
    assert count(logs, "resuming") == 1


async def test_session_after_client_restart_sends_the_kept_update_without_training(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def first(talk: Talk) -> None:
        await talk.welcome()
        await talk.agree(here[0].base)
        await asyncio.sleep(60)

    second = last_round(here)

    async with scripted(first, second) as server:
        here.append(server)
        server.transfer.cuts = [5000] * 10_000
        with capture_logs() as before:
            work = asyncio.create_task(server.client(tmp_path).run())
            await until(lambda: count(before, "resuming the upload"))
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        server.transfer.cuts = []
        _, after = await run(server.client(tmp_path))

    assert (count(before, "trained"), count(after, "trained")) == (1, 0)
    assert count(after, "this round is trained already; sending what was kept") == 1


async def test_session_whose_delivered_update_is_asked_for_again_sends_it_from_disk(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def first(talk: Talk) -> None:
        await talk.welcome()
        await deliver(talk, here[0])
        await talk.cut()

    async def second(talk: Talk) -> None:  # of a server that found, at its start, that it has the update no more
        here[0].transfer.uploads.clear()
        await talk.welcome()
        await deliver(talk, here[0])
        await talk.end(here[0].base)

    async with scripted(first, second) as server:
        here.append(server)
        _, logs = await run(server.client(tmp_path))

        assert server.transfer.calls.count("FinishUpload") == 2
    assert (count(logs, "trained"), count(logs, "update delivered")) == (1, 2)


async def test_session_with_kept_update_damaged_trains_again(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def first(talk: Talk) -> None:
        await talk.welcome()
        await talk.agree(here[0].base)
        await asyncio.sleep(60)

    second = last_round(here)

    async with scripted(first, second) as server:
        here.append(server)
        server.transfer.cuts = [5000] * 10_000
        with capture_logs() as before:
            work = asyncio.create_task(server.client(tmp_path).run())
            await until(lambda: count(before, "resuming the upload"))
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        server.transfer.cuts = []
        kept = next((tmp_path / "state" / "updates").glob("*.safetensors"))
        data = bytearray(kept.read_bytes())
        data[-1] ^= 1
        kept.write_bytes(data)
        server.transfer.uploads.clear()
        _, after = await run(server.client(tmp_path))

    assert count(after, "the update kept on disk is damaged and will be trained again") == 1
    assert count(after, "trained") == 1


async def test_session_cancelled_by_server_stops_training_promptly_and_stays(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await talk.agree(here[0].base, epochs=500)
        await talk.hear("progress")
        await talk.say(cancel=negotiation_pb2.Cancellation(offer_id="offer-1", reason="round 1 closed: goal reached"))
        await deliver(talk, here[0], number=2)  # within seconds, of the minutes that 500 epochs take
        await talk.end(here[0].base)

    async with scripted(script, settings=SLOW) as server:
        here.append(server)
        _, logs = await run(server.client(tmp_path))

        assert list(server.transfer.uploads) == ["upload-2"]
    assert count(logs, "the server does not want this round's update") == 1


async def test_session_keeps_its_lease_through_a_silent_epoch(tmp_path: Path) -> None:
    lease = 0.9
    here: list[Scripted] = []

    async def listening(talk: Talk) -> None:
        await talk.welcome()
        await talk.agree(here[0].base, lease=lease)
        said = [await talk.hear("progress") for _ in range(12)]
        times = [time for time, message in talk.heard if message.WhichOneof("kind") == "progress"]
        assert {progress.epoch for progress in said} <= {0, 1}
        # A third of the lease; the median, since on a busy machine any one of them may come late.
        assert np.median(np.diff(times)) <= lease / 2, times
        await talk.say(cancel=negotiation_pb2.Cancellation(offer_id="offer-1", reason="round 1 closed"))
        await talk.end(here[0].base)

    async with scripted(listening, settings={**SETTINGS, "seconds": "60"}) as server:
        here.append(server)
        await run(server.client(tmp_path))


async def test_session_with_site_limit_counters_with_fewer_epochs_and_trains_those(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await talk.offer(here[0].base, epochs=8)
        counter = await talk.hear("counter_offer")
        assert (counter.offer_id, counter.epochs, counter.HasField("time_needed")) == ("offer-1", 3, False)
        assert counter.reason == "this site allows at most 3 epochs a round"
        await talk.confirm(epochs=3)
        await until(lambda: "upload-1" in here[0].transfer.uploads and finished(here[0]))
        await talk.end(here[0].base)

    async with scripted(script) as server:
        here.append(server)
        await run(server.client(tmp_path, max_epochs=3))

        assert server.transfer.uploads["upload-1"].header.epochs == 3


async def test_session_of_slow_site_asks_for_more_time_by_what_it_measured(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await deliver(talk, here[0])
        await talk.offer(here[0].base, number=2, epochs=20, remaining=5.0)
        counter = await talk.hear("counter_offer")
        needed = counter.time_needed.seconds + counter.time_needed.nanos / 1e9
        epoch = unseal((tmp_path / "state" / "memory.json").read_bytes())["epoch_seconds"] * SAFETY
        transfer = needed - 20 * epoch
        assert counter.epochs == 0
        assert epoch > 0.5 * SAFETY  # a busy machine takes longer, and then the site asks for more
        assert transfer >= 0
        await talk.say(withdraw=negotiation_pb2.Withdrawal(offer_id="offer-2", reason="too long"))
        await talk.offer(here[0].base, number=3, epochs=20, remaining=3.5 * epoch + transfer)
        counter = await talk.hear("counter_offer")
        assert counter.epochs == 3
        assert not counter.HasField("time_needed")
        await talk.end(here[0].base)

    async with scripted(script, settings=SLOW) as server:
        here.append(server)
        await run(server.client(tmp_path))


async def test_withdrawal_of_an_offer_that_is_over_does_not_keep_a_slow_site_from_asking_for_time(
    tmp_path: Path,
) -> None:
    """As where a site stood still, and answers offers that have ended meanwhile."""
    here: list[Scripted] = []

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await deliver(talk, here[0])
        await talk.offer(here[0].base, number=2, epochs=20, remaining=5.0)
        await talk.say(cancel=negotiation_pb2.Cancellation(offer_id="offer-2", reason="no sign of life"))
        assert (await talk.hear("counter_offer")).HasField("time_needed")
        await talk.say(withdraw=negotiation_pb2.Withdrawal(offer_id="offer-2", reason="the offer no longer stands"))
        await talk.offer(here[0].base, number=3, epochs=20, remaining=5.0)
        assert (await talk.hear("counter_offer")).HasField("time_needed")
        await talk.say(withdraw=negotiation_pb2.Withdrawal(offer_id="offer-2", reason="the offer no longer stands"))
        await talk.offer(here[0].base, number=4, epochs=20, remaining=5.0)
        assert (await talk.hear("counter_offer")).HasField("time_needed")
        await talk.end(here[0].base)

    async with scripted(script, settings=SLOW) as server:
        here.append(server)
        await run(server.client(tmp_path))


async def test_memory_of_a_session_keeps_history_and_measured_time(tmp_path: Path) -> None:
    here: list[Scripted] = []

    script = last_round(here)

    async def again(talk: Talk) -> None:
        hello = await talk.welcome()
        assert 0 < hello.epoch_duration.nanos < 10**9
        await talk.end(here[0].base)

    async with scripted(script, again) as server:
        here.append(server)
        await run(server.client(tmp_path))
        await run(server.client(tmp_path))

    memory = unseal((tmp_path / "state" / "memory.json").read_bytes())
    assert [(row["round"], row["epoch"]) for row in memory["rows"]] == [(1, 1), (1, 2)]
