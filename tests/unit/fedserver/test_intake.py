"""One round's updates: what the sums hold, when they are let go, and what is made of them again. 2 s."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import UserDict
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest
from structlog.testing import capture_logs

from fedserver.aggregation import Accumulator
from fedserver.intake import Intake
from fedserver.store import DamagedFile, StateReader, UploadState
from fedserver.store.updates import Update
from fedserver.verification import verify
from fedstream.dtypes import DataType
from tests.support.bench import SCHEMA, Bench
from tests.support.full_disk import FullDisk
from tests.support.processes import soon
from tests.support.tasks import random_weights
from tests.unit.fedserver.aggregation.oracle import exact_mean, promised_bound, worst_error

pytestmark = pytest.mark.numpy_task

SEEDS = {"a": 1, "b": 2, "c": 3}


async def undisturbed(folder: Path) -> str:
    async with Bench.running(folder, "abc", min_clients=3) as bench:
        work = await bench.play(*SEEDS.values())
        assert work.model is not None
        return work.model.digest.hex


def intake_of(bench: Bench) -> Intake:
    assert bench.federation.intake is not None
    return bench.federation.intake


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[np.ndarray]]:
    """The sum of every tensor that any round has made."""
    found: list[weakref.ref[np.ndarray]] = []
    allocate = Accumulator._allocate

    def noted(self: Accumulator, *arguments: object) -> None:
        allocate(self, *arguments)  # type: ignore[arg-type]
        known = {id(ref()) for ref in found}
        found.extend(weakref.ref(each.total) for each in self._sums.values() if id(each.total) not in known)

    monkeypatch.setattr(Accumulator, "_allocate", noted)
    return found


async def test_sums_are_let_go_when_the_model_is_made(tmp_path: Path, sums: list[weakref.ref[np.ndarray]]) -> None:
    async with Bench.running(tmp_path, "ab", min_clients=2, accuracies=[0.5]) as bench:
        alive_at_evaluation: list[int] = []
        evaluate = bench.federation.evaluator.evaluate

        async def watched(path: Path):  # type: ignore[no-untyped-def]
            alive_at_evaluation.append(sum(ref() is not None for ref in sums))
            return await evaluate(path)

        bench.federation.evaluator.evaluate = watched  # type: ignore[method-assign]
        work = await bench.play(1, 2)
        assert work.intake is bench.federation.intake
        assert len(sums) == len([spec for spec in SCHEMA if spec.dtype.is_floating and spec.num_elements])
        assert alive_at_evaluation == [0]


async def test_shares_have_the_same_bits_whoever_came_first(tmp_path: Path) -> None:
    shares: set[tuple[float, ...]] = set()
    for order in ("bde", "deb", "bed"):  # whose weights have sums that differ with their order
        async with Bench.running(tmp_path / order, "abcde", min_clients=3, strategy="rank_decay") as bench:
            running = await bench.open_round()
            for name in "ac":
                bench.federation.apply(bench.round.decline(name, bench.part(name).offer_id, "busy", 0.0))
            for name in order:
                await bench.send(name, random_weights(SCHEMA, ord(name)))
            work = await bench.end_round(running)
            shares.add(tuple(part.weight for part in work.opened.participations))
    (share_of_rank,) = shares
    weights = [0.0, *(0.1 / (rank + 0.1) for rank in (1,)), 0.0, *(0.1 / (rank + 0.1) for rank in (3, 4))]
    assert share_of_rank == pytest.approx([weight / sum(weights) for weight in weights])


async def test_sums_are_let_go_when_the_round_fails(tmp_path: Path, sums: list[weakref.ref[np.ndarray]]) -> None:
    async with Bench.running(tmp_path, "ab", min_clients=2) as bench:
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 1))
        await intake_of(bench).caught_up()
        assert sum(ref() is not None for ref in sums) > 0
        bench.federation.stop(finish_round=False)
        assert (await bench.end_round(running)).model is None
        assert sum(ref() is not None for ref in sums) == 0


async def test_sums_let_go_while_updates_are_added_are_not_made_again(
    tmp_path: Path, sums: list[weakref.ref[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, fold = threading.Event(), Accumulator.fold

    def slow(*arguments: Any) -> None:
        assert go_on.wait(20.0)
        fold(*arguments)

    monkeypatch.setattr(Accumulator, "fold", slow)
    async with Bench.running(tmp_path, "abc", min_clients=3) as bench:
        running = await bench.open_round()
        for name in "ab":  # the second waits until the first is added
            await bench.send(name, random_weights(SCHEMA, 1))
        releasing = asyncio.create_task(intake_of(bench).release())
        await asyncio.sleep(0.01)
        go_on.set()
        await releasing
        await intake_of(bench).caught_up()
        assert len(sums) > 0
        await soon("the thread to let them go", lambda: all(ref() is None for ref in sums), 10.0)
        running.cancel()


@pytest.mark.parametrize("released_after", ["a", "b", "c"])
async def test_sums_let_go_at_any_time_are_made_again_to_the_same_bits(tmp_path: Path, released_after: str) -> None:
    expected = await undisturbed(tmp_path / "undisturbed")
    async with Bench.running(tmp_path / "live", "abc", min_clients=3) as bench:
        running = await bench.open_round()
        for name, seed in SEEDS.items():
            await bench.send(name, random_weights(SCHEMA, seed))
            if name == released_after:
                await intake_of(bench).release()
        work = await bench.end_round(running)
        assert work.model is not None
        assert work.model.digest.hex == expected


class Unreadable(UserDict[str, np.ndarray]):
    """Tensors of which one cannot be read."""

    def __init__(self, tensors: Mapping[str, np.ndarray], name: str) -> None:
        super().__init__(tensors)
        self._name = name

    def __getitem__(self, name: str) -> np.ndarray:
        if name == self._name:
            raise OSError(5, "Input/output error")
        return self.data[name]


async def test_update_that_cannot_be_read_to_its_end_is_added_later_and_leaves_the_others_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`large` is the last in order: what comes before it was added when reading fails."""
    expected = await undisturbed(tmp_path / "undisturbed")
    async with Bench.running(tmp_path / "live", "abc", min_clients=3) as bench:
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 1))
        await intake_of(bench).caught_up()
        tensors = Update.tensors
        with monkeypatch.context() as patched, capture_logs() as logs:
            patched.setattr(Update, "tensors", lambda update: Unreadable(tensors(update), "large"))
            await bench.send("b", random_weights(SCHEMA, 2))
            await intake_of(bench).caught_up()
        assert [entry["because"] for entry in logs if "could not be added" in entry["event"]] == [
            "[Errno 5] Input/output error"
        ]
        await bench.send("c", random_weights(SCHEMA, 3))
        work = await bench.end_round(running)
        assert work.model is not None
        assert work.model.digest.hex == expected


@pytest.mark.parametrize("strategy", ["fedavg", "uniform"])
async def test_update_of_more_examples_than_its_site_can_have_is_kept_aside_whatever_it_would_weigh(
    tmp_path: Path, strategy: str
) -> None:
    async with Bench.running(tmp_path, "ab", strategy=strategy) as bench:
        running = await bench.open_round()
        status = await bench.send("a", random_weights(SCHEMA, 1), num_examples=21)
        assert status.state is UploadState.QUARANTINED
        assert status.reason.startswith("num_examples: the update says it was trained on 21 examples; the site claimed")
        await bench.send("b", random_weights(SCHEMA, 2), num_examples=20)
        work = await bench.end_round(running)
        assert [part.weight for part in work.opened.participations] == [0.0, 1.0]


async def test_update_whose_admission_could_not_be_recorded_is_in_no_model_where_its_site_does_not_come_back(
    tmp_path: Path,
) -> None:
    digests: list[str] = []
    for is_sent in (False, True):
        async with Bench.running(tmp_path / str(is_sent), "abc", min_clients=2) as bench:
            running = await bench.open_round()
            upload_id = await bench.begin("a", random_weights(SCHEMA, 1))
            if is_sent:
                await bench.write(upload_id, random_weights(SCHEMA, 1))
                with pytest.MonkeyPatch.context() as patched:
                    patched.setattr(bench.state.journal, "write", AsyncMock(side_effect=OSError(5, "I/O error")))
                    with pytest.raises(OSError, match="I/O error"):
                        await bench.desk.finish(upload_id)
            bench.federation.apply(bench.round.fail("a", bench.part("a").offer_id, "power cut", bench.federation.now))
            await bench.send("b", random_weights(SCHEMA, 2))
            await bench.send("c", random_weights(SCHEMA, 3))
            work = await bench.end_round(running)
            assert work.model is not None
            assert [part.weight for part in work.opened.participations] == [0.0, 0.5, 0.5]
            digests.append(work.model.digest.hex)
    assert digests[0] == digests[1]


def tiny_weights(seed: int) -> dict[str, np.ndarray]:
    """`large` is far below the resolution of the sums, so that the model's is made of the updates themselves."""
    weights = random_weights(SCHEMA, seed)
    return {**weights, "large": weights["large"] * np.float32(1e-30)}


async def test_values_too_small_for_the_sums_are_read_again_from_the_stored_updates(tmp_path: Path) -> None:
    updates = [tiny_weights(seed) for seed in SEEDS.values()]
    async with Bench.running(tmp_path, "abc", min_clients=3) as bench:
        running = await bench.open_round()
        for name, update in zip("cab", updates, strict=True):
            await bench.send(name, update)
        work = await bench.end_round(running)
        assert work.model is not None
        made = work.model.weights()["large"]
    large = [update["large"] for update in updates]
    exact = exact_mean([Fraction(10)] * 3, large)
    assert worst_error(made, exact) <= promised_bound(DataType.FLOAT32, large)
    reader = StateReader(tmp_path)
    assert [(one.recomputed, one.differences) for one in verify(reader).rounds] == [(True, [])]
    reader.close()


async def test_update_that_changes_on_disk_before_it_is_read_again_makes_no_model(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "ab", min_clients=2) as bench:
        running = await bench.open_round()
        await bench.send("a", tiny_weights(1))
        await intake_of(bench).caught_up()
        (path,) = (bench.state.folder / "updates").glob("*.safetensors")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        await bench.send("b", tiny_weights(2))
        with pytest.raises(DamagedFile, match=f"{path} is damaged: tensor large does not match its digest; start"):
            await bench.end_round(running)
        assert bench.federation.model.version == 0


async def test_update_that_changes_on_disk_after_the_sums_were_let_go_is_not_added(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "abc", min_clients=3) as bench:
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 1))
        await intake_of(bench).caught_up()
        await intake_of(bench).release()
        (path,) = (bench.state.folder / "updates").glob("*.safetensors")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        await bench.send("b", random_weights(SCHEMA, 2))
        await bench.send("c", random_weights(SCHEMA, 3))
        with pytest.raises(DamagedFile, match="does not match its digest"):
            await bench.end_round(running)


async def test_model_refused_by_the_disk_at_any_tensor_is_the_same_the_second_time(tmp_path: Path) -> None:
    expected = await undisturbed(tmp_path / "undisturbed")
    for step in range(1, len(SCHEMA) + 6):
        disk = FullDisk()
        async with Bench.running(tmp_path / str(step), "abc", files=disk, min_clients=3) as bench:
            running = await bench.open_round()
            add = bench.state.models.add

            def refused(*arguments, disk=disk, add=add, step=step):  # type: ignore[no-untyped-def]
                bench.state.models.add = add  # type: ignore[method-assign]
                disk.fill(1, start=disk.steps + step)
                return add(*arguments)

            bench.state.models.add = refused  # type: ignore[method-assign]
            for name, seed in SEEDS.items():
                await bench.send(name, random_weights(SCHEMA, seed))
            work = await bench.end_round(running)
            assert work.model is not None
            assert work.model.digest.hex == expected, step
