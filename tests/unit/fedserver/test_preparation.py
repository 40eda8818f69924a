"""What a federation may begin with, and what it goes on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from fedserver.evaluation import Evaluator
from fedserver.federation import FederationFailed
from fedserver.preparation import prepare
from fedserver.store import State
from fedserver.store.facts import KEEP_ROUNDS_FACT, SOURCES_FACT
from fedstream.schema import ModelSchema, TaskMeaning
from fedtask.messages import TaskDescription
from fedtask.task import TaskError
from tests.support.bench import SCHEMA, Bench, Worker, write_weights
from tests.support.tasks import Shapes, random_weights

pytestmark = pytest.mark.numpy_task


async def test_start_with_fewer_rounds_than_there_were_is_refused(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        await bench.play(1)
        await bench.play(2)
    with pytest.raises(FederationFailed, match=r"2 rounds are over in .* and --rounds is 1 in all"):
        await prepared(tmp_path, rounds=1)
    await prepared(tmp_path, rounds=2)


async def test_start_with_fewer_rounds_than_have_begun_is_refused(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        await bench.play(1)
        running = await bench.open_round()
        running.cancel()
    with pytest.raises(FederationFailed, match=r"round 2 has begun in .* and --rounds is 1 in all"):
        await prepared(tmp_path, rounds=1)
    await prepared(tmp_path, rounds=2)


async def prepared(folder: Path, meaning: TaskMeaning | None = None, **settings: Any) -> None:
    bench = Bench(folder, **settings)
    try:
        if meaning is not None:
            description = replace(await bench.federation.evaluator.describe(), meaning=meaning)

            async def describe() -> TaskDescription:
                return description

            bench.federation.evaluator.describe = describe  # type: ignore[method-assign]
        await prepare(bench.federation)
    finally:
        await bench.federation.register.settled()
        bench.desk.close()
        bench.state.close()


async def prepared_by_a_worker_that_dies(folder: Path, times: int, holdout: str | None) -> None:
    (folder / "deaths").write_text("x" * times)
    bench = Bench(folder / "state")
    task, settings = "tests.support.tasks:Killed", {"deaths": str(folder / "deaths")}
    bench.federation.evaluator = Evaluator(task, settings, holdout, {})
    try:
        await prepare(bench.federation)
    finally:
        await bench.federation.evaluator.close()
        bench.desk.close()
        bench.state.close()


@pytest.mark.parametrize("holdout", [None, "phantom"])
async def test_start_whose_worker_is_killed_once_goes_on(tmp_path: Path, holdout: str | None) -> None:
    with capture_logs() as logs:
        await prepared_by_a_worker_that_dies(tmp_path, 1, holdout)
    told = [line["because"] for line in logs if line["log_level"] == "error"]
    assert len(told) == 1
    assert told[0].startswith("the worker process ended with status -9, killed: perhaps this machine has too little")


@pytest.mark.parametrize("holdout", [None, "phantom"])
async def test_start_whose_worker_is_killed_twice_says_what_may_be_the_reason(
    tmp_path: Path, holdout: str | None
) -> None:
    with pytest.raises(FederationFailed, match="status -9, killed: perhaps this machine has too little memory"):
        await prepared_by_a_worker_that_dies(tmp_path, 2, holdout)


async def test_start_with_classes_in_another_order_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    await prepared(tmp_path, keep_rounds=3)
    meaning = Worker([])._task.meaning()
    swapped = replace(meaning, class_names=tuple(reversed(meaning.class_names)))
    with pytest.raises(FederationFailed, match=r"was begun with classes .* it would be classes .*Give the task"):
        await prepared(tmp_path, swapped, keep_rounds=4)
    state = State(tmp_path)
    assert state.fact(KEEP_ROUNDS_FACT) == "3"
    state.close()
    await prepared(tmp_path, meaning)


async def test_federation_whose_holdout_is_not_there_has_made_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def missing(_worker: Worker) -> None:
        raise TaskError("there is no folder data/val")

    monkeypatch.setattr(Worker, "open", missing)
    with pytest.raises(FederationFailed, match="no folder data/val"):
        async with Bench.running(tmp_path):
            pass
    assert list((tmp_path / "models").iterdir()) == []


async def test_model_of_the_same_tensors_in_other_shapes_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bench.running(tmp_path):
        pass
    first, *others = SCHEMA
    wider = (replace(first, shape=(*first.shape, 2)), *others)
    real = Worker.describe

    async def describe(worker: Worker) -> TaskDescription:
        return replace(await real(worker), tensors=wider)

    monkeypatch.setattr(Worker, "describe", describe)
    with pytest.raises(FederationFailed, match="holds another model than this task's"):
        async with Bench.running(tmp_path):
            pass


@pytest.mark.parametrize("name", ["scalar", "half", "double", "large"])
@pytest.mark.parametrize(
    ("given", "way_out"),
    [
        ({"initial_model": Path("ours.h5")}, "give another --initial-model than ours.h5"),
        ({"backbone_weights": "imagenet.h5"}, "give other --backbone-weights than imagenet.h5"),
        ({}, "mend the task, or give an --initial-model"),
    ],
)
async def test_federation_does_not_begin_with_a_model_that_is_not_finite_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: dict[str, Any], way_out: str
) -> None:
    value = np.inf if name == "half" else np.nan
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "initial_model", writing(name, value))
        with pytest.raises(FederationFailed, match=f"has {value} in its tensor {name}, .*; .*{way_out}"):
            await prepared(tmp_path, **given)
    assert list((tmp_path / "models").iterdir()) == []
    state = State(tmp_path)
    assert state.fact(SOURCES_FACT) is None
    state.close()
    await prepared(tmp_path)


async def test_federation_does_not_go_on_from_a_stored_model_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier_release:
        earlier_release.setattr(Worker, "initial_model", writing("large", -np.inf))
        earlier_release.setattr("fedserver.starting_model._require_finite", lambda *_: None)
        await prepared(tmp_path)
    with pytest.raises(FederationFailed, match=r"has inf in its tensor large, .* begin anew with another --state"):
        await prepared(tmp_path)


async def test_frozen_tensor_need_not_be_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = [replace(spec, trainable=spec.name != "large") for spec in SCHEMA]
    monkeypatch.setattr(Shapes, "schema", lambda _: ModelSchema(tuple(frozen)))
    monkeypatch.setattr(Worker, "initial_model", writing("large", -np.inf))
    for number in (1, 2):
        async with Bench.running(tmp_path, "ab") as bench:
            running = await bench.open_round(number)
            masked = bench.federation.model.weights()["large"]
            trained = random_weights(SCHEMA, number)
            assert (await bench.send("a", {**trained, "large": masked})).reason == ""
            changed = "not_finite: tensor 'large' holds inf in the base model and has to stay as it is there; "
            assert (await bench.send("b", trained)).reason.startswith(changed)
            assert (await bench.end_round(running)).opened.succeeded
            assert np.isinf(bench.federation.model.weights()["large"].flat[-1])


def writing(name: str, value: float) -> Any:
    async def initial_model(_worker: Worker, seed: int, _source: str | None, _file: Path | None, out: Path) -> None:
        weights = random_weights(SCHEMA, seed)
        spoilt = np.array(weights[name])
        spoilt.flat[-1] = value
        write_weights(out, {**weights, name: spoilt})

    return initial_model


async def test_first_model_is_not_taken_for_one_of_other_weights(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a", backbone_weights="random"):
        pass
    with pytest.raises(FederationFailed, match="was not made with this --backbone-weights; give another"):
        async with Bench.running(tmp_path, backbone_weights="imagenet.h5"):
            pass
    async with Bench.running(tmp_path, "a") as bench:  # without the option, it goes on
        await bench.play(1)
    with capture_logs() as logs:
        async with Bench.running(tmp_path, backbone_weights="imagenet.h5"):
            pass
    assert [one["event"] for one in logs if one["log_level"] == "warning"] == [
        "going on from the last model all the same"
    ]
