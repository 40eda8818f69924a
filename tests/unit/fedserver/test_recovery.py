"""A new process goes on where the last one was: same bits, same time left, and as often as one likes. 10 s."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fedserver.coordinator.effects import Cancel, Effect
from fedserver.coordinator.participation import Stage
from fedserver.coordinator.round import Round, RoundRules
from fedserver.federation import ref_of
from fedserver.store import DamagedFile, StateError, StateReader
from fedserver.store.rounds import keeping
from fedserver.store.row_checks import register
from fedserver.verification import verify
from fedstream.outcomes import Outcome
from fedstream.progress import Progress
from tests.support.bench import SCHEMA, Bench, image_of
from tests.support.clocks import SetClock
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task


def snapshot(folder: Path) -> dict[str, object]:
    """Every row and every file, but for what says when a process ran."""
    with sqlite3.connect(folder / "state.db") as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows: dict[str, object] = {}
        for name in tables:
            rows[name] = connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()  # noqa: S608 - of the schema
    connection.close()
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors*")}
    return {**rows, "files": files}


async def end(bench: Bench, *seeds: tuple[str, int]) -> str:
    """Send what is missing, and return the digest of the round's model."""
    running = await bench.open_round()
    for name, seed in seeds:
        await bench.send(name, random_weights(SCHEMA, seed))
    work = await bench.end_round(running)
    assert work.model is not None
    return work.model.digest.hex


async def undisturbed(folder: Path) -> str:
    async with Bench.running(folder, "abc", min_clients=3) as bench:
        return await end(bench, ("a", 1), ("b", 2), ("c", 3))


async def test_round_that_was_opened_for_nobody_is_opened_anew(tmp_path: Path) -> None:
    async with Bench.running(tmp_path) as bench:
        model, now = ref_of(bench.federation.model), bench.federation.now
        nobodys = Round(1, model, RoundRules(1, 1, 60.0, 120.0, 60.0), [], now)
        await bench.state.journal.write(*keeping(nobodys, now))
    async with Bench.running(tmp_path, "a") as bench:
        assert bench.revived is None
        assert (await bench.play(1)).model is not None
    async with Bench.running(tmp_path) as bench:
        assert bench.revived is None


async def test_restart_between_any_two_updates_gives_the_same_bits(tmp_path: Path) -> None:
    expected = await undisturbed(tmp_path / "undisturbed")
    async with Bench.running(tmp_path / "live", "abc", min_clients=3) as bench:
        running = await bench.open_round()
        images = [image_of(tmp_path / "live", tmp_path / "0")]
        for number, (name, seed) in enumerate((("a", 1), ("b", 2), ("c", 3)), start=1):
            await bench.send(name, random_weights(SCHEMA, seed))
            images.append(image_of(tmp_path / "live", tmp_path / str(number)))
        await bench.end_round(running)
    for number, image in enumerate(images):
        async with Bench.running(image, "abc", min_clients=3) as bench:
            assert bench.revived is not None
            assert [part.outcome for part in bench.round.participations].count(Outcome.COMPLETED) == number
            assert await end(bench, *(("a", 1), ("b", 2), ("c", 3))[number:]) == expected, number
        reader = StateReader(image)
        assert verify(reader).agrees
        reader.close()


async def test_restart_while_the_aggregate_is_made_gives_the_same_bits(tmp_path: Path) -> None:
    """Stopped after the round was closed, and after its model was stored, but before the round was recorded."""
    expected = await undisturbed(tmp_path / "undisturbed")
    images: list[Path] = []
    async with Bench.running(tmp_path / "live", "abc", min_clients=3) as bench:
        running = await bench.open_round()
        intake = bench.federation.intake
        assert intake is not None
        screen, add = intake.screen, bench.state.models.add

        async def watched_screen(completed):  # type: ignore[no-untyped-def]
            images.append(image_of(tmp_path / "live", tmp_path / "closed"))
            return await screen(completed)

        def watched_add(*arguments):  # type: ignore[no-untyped-def]
            try:
                return add(*arguments)
            finally:
                images.append(image_of(tmp_path / "live", tmp_path / "stored"))

        intake.screen, bench.state.models.add = watched_screen, watched_add  # type: ignore[method-assign]
        for name, seed in (("a", 1), ("b", 2), ("c", 3)):
            await bench.send(name, random_weights(SCHEMA, seed))
        await bench.end_round(running)
    assert [path.name for path in images] == ["closed", "stored"]
    for image in images:
        async with Bench.running(image, min_clients=3) as bench:  # nobody has to come back
            assert await end(bench) == expected
            bench.join("a")
            assert bench.federation.population["a"].rounds_completed == 1


async def test_recovering_twice_is_recovering_once(tmp_path: Path) -> None:
    async with Bench.running(tmp_path / "live", "abc", min_clients=3) as bench:
        await bench.play(4, 5, 6)
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 1))
        await bench.write(await bench.begin("b", random_weights(SCHEMA, 2)), random_weights(SCHEMA, 2), stop=500)
        await bench.accept("c")
        image_of(tmp_path / "live", tmp_path / "image")
        running.cancel()
    before = snapshot(tmp_path / "image")
    for _ in range(3):
        async with Bench.running(tmp_path / "image", min_clients=3) as bench:
            stages = [part.stage for part in bench.round.participations]
            assert stages == [Stage.ENDED, Stage.WORKING, Stage.WORKING]
        assert snapshot(tmp_path / "image") == before


async def test_down_time_counts_against_no_deadline_and_no_lease(tmp_path: Path) -> None:
    clock = SetClock(steady=50_000.0)
    settings = {"round_timeout_seconds": 100.0, "lease_seconds": 10.0, "min_clients": 2}
    async with Bench.running(tmp_path / "live", "ab", clock=clock, **settings) as bench:
        running = await bench.open_round()
        clock.advance(7.0)
        await bench.accept("a")
        upload_id = await bench.begin("b", random_weights(SCHEMA, 2))
        await bench.write(upload_id, random_weights(SCHEMA, 2), stop=300)
        deadlines = [part.deadline - clock.steady for part in bench.round.participations]
        assert deadlines == [93.0, 93.0]
        image_of(tmp_path / "live", tmp_path / "image")
        running.cancel()
    # A year later, on a machine that was started just now, and whose wall clock was set back by ten years.
    clock = SetClock(steady=3.0, wall=1.3e9)
    async with Bench.running(tmp_path / "image", "ab", clock=clock, **settings) as bench:
        left = {part.client: part.deadline - clock.steady for part in bench.round.participations}
        assert left["a"] == pytest.approx(93.0)
        assert left["b"] == pytest.approx(93.0)
        # Longer than the lease: each has the time that it may wait before it tries to reach a server again.
        assert [part.lease_until - clock.steady for part in bench.round.participations] == [40.0, 40.0]
        assert bench.round.tick(clock.steady + 39.9) == []
        running = await bench.open_round()
        await bench.write(bench.part("b").upload_id, random_weights(SCHEMA, 2))
        await bench.desk.finish(bench.part("b").upload_id)
        clock.advance(41.0)  # now the lease of `a`, who did not come back, has run out
        bench.federation.touch()
        work = await bench.end_round(running)
        assert [(part.outcome, part.reason) for part in work.opened.participations] == [
            (Outcome.EXPIRED, "no sign of life for 41 s"),
            (Outcome.COMPLETED, ""),
        ]


async def test_site_that_was_told_that_its_time_is_over_is_not_waited_for_after_a_kill(tmp_path: Path) -> None:
    clock, told = SetClock(50_000.0), asyncio.Event()
    async with Bench.running(tmp_path / "live", "ab", clock=clock, lease_seconds=10.0) as bench:
        running = await bench.open_round()
        for name in "ab":
            await bench.accept(name)
        say = bench.federation.sessions.say

        def watched(effects: Iterable[Effect]) -> None:
            said = list(effects)
            say(said)
            if any(isinstance(effect, Cancel) for effect in said):
                image_of(tmp_path / "live", tmp_path / "image")
                told.set()

        bench.federation.sessions.say = watched  # type: ignore[method-assign]
        clock.advance(9.0)
        bench.round.progress("b", bench.part("b").offer_id, Progress(), clock.steady)
        clock.advance(2.0)
        bench.federation.touch()
        await asyncio.wait_for(told.wait(), 10.0)
        running.cancel()
    async with Bench.running(tmp_path / "image", "ab", lease_seconds=10.0) as bench:
        assert [(part.outcome, part.reason) for part in bench.round.participations] == [
            (Outcome.EXPIRED, "no sign of life for 11 s"),
            (None, ""),
        ]


async def test_site_whose_deadline_was_near_has_the_time_to_find_the_server_again(tmp_path: Path) -> None:
    clock = SetClock(steady=50_000.0)
    settings = {"round_timeout_seconds": 100.0, "lease_seconds": 300.0}
    async with Bench.running(tmp_path / "live", "a", clock=clock, **settings) as bench:
        running = await bench.open_round()
        clock.advance(97.0)
        await bench.accept("a")
        image_of(tmp_path / "live", tmp_path / "image")
        running.cancel()
    clock = SetClock(steady=3.0)
    async with Bench.running(tmp_path / "image", clock=clock, **settings) as bench:
        running = await bench.open_round()
        clock.advance(35.0)
        bench.federation.touch()
        bench.join("a")
        await bench.send("a", random_weights(SCHEMA, 1))
        assert (await bench.end_round(running)).model is not None


async def test_wall_clock_that_jumps_back_changes_nothing_but_what_is_shown(tmp_path: Path) -> None:
    expected = await undisturbed(tmp_path / "undisturbed")
    clock = SetClock(steady=100.0)
    async with Bench.running(tmp_path / "state", "abc", clock=clock, min_clients=3) as bench:
        running = await bench.open_round()
        clock.now -= 10 * 365 * 86_400.0
        clock.steady += 5.0
        for name, seed in (("a", 1), ("b", 2), ("c", 3)):
            await bench.send(name, random_weights(SCHEMA, seed))
            clock.now -= 3_600.0
        work = await bench.end_round(running)
        assert work.model is not None
        assert work.model.digest.hex == expected
        record = bench.federation.history[-1]
        assert record.duration_seconds == 5.0
        assert [one.seconds for one in record.contributions] == [5.0, 5.0, 5.0]


def flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("harm", [flip_last_byte, Path.unlink, lambda path: path.write_bytes(b"")])
async def test_update_damaged_while_the_server_was_down_is_asked_for_again(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    expected = await undisturbed(tmp_path / "undisturbed")
    async with Bench.running(tmp_path / "live", "abc", min_clients=3) as bench:
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 1))
        await bench.send("b", random_weights(SCHEMA, 2))
        upload_id = bench.part("a").upload_id
        image = image_of(tmp_path / "live", tmp_path / "image")
        running.cancel()
    harm(image / "updates" / f"{upload_id}.safetensors")
    for _ in range(2):  # the second time it is known already
        async with Bench.running(image, "abc", min_clients=3) as bench:
            assert [part.outcome for part in bench.round.participations] == [None, Outcome.COMPLETED, None]
            assert bench.part("a").upload_id == upload_id
            assert not list((image / "updates").glob(f"{upload_id}*"))
    async with Bench.running(image, "abc", min_clients=3) as bench:
        assert await end(bench, ("a", 1), ("c", 3)) == expected


def image_after_the_close(bench: Bench, live: Path, image: Path) -> None:
    """Have `image` be what a kill leaves of `live` when the round has closed, before its updates are checked."""
    assert bench.federation.intake is not None
    screen = bench.federation.intake.screen

    async def screen_after_the_image(completed):  # type: ignore[no-untyped-def]
        image_of(live, image)
        return await screen(completed)

    bench.federation.intake.screen = screen_after_the_image  # type: ignore[method-assign]


async def test_update_found_damaged_after_the_close_reopens_the_round(tmp_path: Path) -> None:
    expected = await undisturbed(tmp_path / "undisturbed")
    async with Bench.running(tmp_path / "live", "abc", min_clients=3) as bench:
        running = await bench.open_round()
        image_after_the_close(bench, tmp_path / "live", tmp_path / "image")
        for name, seed in (("a", 1), ("b", 2), ("c", 3)):
            await bench.send(name, random_weights(SCHEMA, seed))
        upload_id = bench.part("b").upload_id
        await bench.end_round(running)
    flip_last_byte(tmp_path / "image" / "updates" / f"{upload_id}.safetensors")
    async with Bench.running(tmp_path / "image", "abc", min_clients=3) as bench:
        assert bench.round.closed is None
        assert await end(bench, ("b", 2)) == expected


async def test_round_that_had_closed_when_the_server_was_killed_keeps_its_reason(tmp_path: Path) -> None:
    async with Bench.running(tmp_path / "live", "ab") as bench:
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 1))
        image_after_the_close(bench, tmp_path / "live", tmp_path / "image")
        bench.federation.stop(finish_round=False)
        await bench.end_round(running)
    async with Bench.running(tmp_path / "image", "ab") as bench:
        work = await bench.end_round(await bench.open_round())
        assert (work.opened.reason, work.opened.succeeded) == ("stopped by the coordinator", True)


async def test_damaged_global_model_is_refused_at_start_with_its_tensor(tmp_path: Path) -> None:
    await undisturbed(tmp_path / "state")
    reader = StateReader(tmp_path / "state")
    path = reader.models().of_version(1).path
    reader.close()
    flip_last_byte(path)
    with pytest.raises(DamagedFile, match=f"{path} is damaged: tensor large does not match its digest; restore"):
        async with Bench.running(tmp_path / "state"):
            pass


async def test_base_damaged_while_a_round_runs_is_not_passed_on(tmp_path: Path) -> None:
    async with Bench.running(tmp_path / "state", "a") as bench:
        running = await bench.open_round()
        model = bench.federation.model
        weights = {**random_weights(SCHEMA, 1), "large": model.weights()["large"].copy()}  # `large` passes through
        flip_in_place(model.path)
        await bench.send("a", weights)
        with pytest.raises(DamagedFile, match="tensor large does not match its digest; restore a backup"):
            await asyncio.wait_for(running, 20)


async def test_update_damaged_before_it_is_taken_out_again_ends_with_what_to_do(tmp_path: Path) -> None:
    async with Bench.running(tmp_path / "state", "abcd", min_clients=4) as bench:
        running = await bench.open_round()
        for name, seed in (("a", 1), ("b", 2), ("c", 3)):
            await bench.send(name, random_weights(SCHEMA, seed))
        weights = random_weights(SCHEMA, 4)
        huge = {**weights, "large": weights["large"] * 4000}
        upload_id = await bench.begin("d", huge)
        await bench.write(upload_id, huge)
        await bench.desk.finish(upload_id)
        flip_in_place(bench.state.uploads.folder / f"{upload_id}.safetensors")
        with pytest.raises(DamagedFile, match=r"tensor large .* start `fedserver run` again, and the"):
            await asyncio.wait_for(running, 20)


def flip_in_place(path: Path) -> None:
    """As a failing medium does: the file stays the same, its bytes do not."""
    with path.open("r+b") as file:
        file.seek(-2, 2)
        last = file.read(1)
        file.seek(-2, 2)
        file.write(bytes([last[0] ^ 1]))


async def test_round_that_started_from_another_model_is_refused(tmp_path: Path) -> None:
    async with Bench.running(tmp_path / "live", "a") as bench:
        await bench.play(1)
        running = await bench.open_round()
        image_of(tmp_path / "live", tmp_path / "image")
        running.cancel()
    with sqlite3.connect(tmp_path / "image" / "state.db") as connection:
        connection.execute("DELETE FROM rounds")
    connection.close()
    with pytest.raises(StateError, match=r"round 2 started from model \w+, but the last one stored is \w+; restore"):
        async with Bench.running(tmp_path / "image"):
            pass


async def test_damaged_row_is_refused_with_what_to_do(tmp_path: Path) -> None:
    await undisturbed(tmp_path / "state")
    with sqlite3.connect(tmp_path / "state" / "state.db") as connection:
        register(connection)  # a row that is whole, and says what no version of this program wrote
        connection.execute("UPDATE rounds SET record = substr(record, 1, 100)")
    connection.close()
    with pytest.raises(StateError, match=r"a row of table rounds .* is damaged .*; restore a backup"):
        async with Bench.running(tmp_path / "state"):
            pass


async def test_round_that_is_taken_up_counts_the_bytes_received_before(tmp_path: Path) -> None:
    weights = {name: random_weights(SCHEMA, seed) for seed, name in enumerate("ab", start=1)}
    async with Bench.running(tmp_path / "live", "ab", min_clients=2) as bench:
        running = await bench.open_round()
        await bench.send("a", weights["a"])
        await bench.write(await bench.begin("b", weights["b"]), weights["b"], stop=500)
        bench.federation.traffic.sent = 7
        image_of(tmp_path / "live", tmp_path / "killed")
        await bench.write(bench.part("b").upload_id, weights["b"])
        await bench.desk.finish(bench.part("b").upload_id)
        await bench.end_round(running)
        (undisturbed,) = bench.federation.history
    async with Bench.running(tmp_path / "killed", "ab", min_clients=2) as bench:
        before = bench.federation.traffic
        assert (before.received, before.sent) == (undisturbed.contributions[0].upload_bytes + 500, 0)
        running = await bench.open_round()
        await bench.write(bench.part("b").upload_id, weights["b"])
        await bench.desk.finish(bench.part("b").upload_id)
        await bench.end_round(running)
        (record,) = bench.federation.history
    assert record.bytes_received == undisturbed.bytes_received == 2 * undisturbed.contributions[0].upload_bytes


async def test_update_that_is_damaged_counts_as_received_each_time(tmp_path: Path) -> None:
    async with Bench.running(tmp_path / "live", "ab", min_clients=2) as bench:
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 1))
        size = bench.federation.traffic.received
        image_of(tmp_path / "live", tmp_path / "killed")
        running.cancel()
    (file,) = (tmp_path / "killed" / "updates").rglob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    async with Bench.running(tmp_path / "killed", "ab", min_clients=2) as bench:
        assert bench.federation.traffic.received == size
        running = await bench.open_round()
        for name, seed in (("a", 1), ("b", 2)):
            await bench.send(name, random_weights(SCHEMA, seed))
        await bench.end_round(running)
        (record,) = bench.federation.history
    assert record.bytes_received == 3 * size
