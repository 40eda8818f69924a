"""Whatever happened before: what is referred to is never collected, and what is not does not pile up. 10 s."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedserver.store import StateReader, retention
from fedserver.store.scores import best_versions
from fedserver.store.uploads import finished_uploads
from fedserver.verification import verify
from tests.support.bench import SCHEMA, Bench, image_of
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task

# One letter a round: a model comes out, none does, or the same model as before comes out.
ROUNDS = st.lists(st.sampled_from("mns"), min_size=1, max_size=7)


async def play(bench: Bench, kind: str, number: int) -> None:
    running = await bench.open_round(number)
    base = bench.federation.model
    for name in "ab":
        if kind == "n":
            part = bench.part(name)
            bench.federation.apply(bench.round.decline(name, part.offer_id, "busy", bench.federation.now))
        else:
            weights = random_weights(SCHEMA, number) if kind == "m" else base.weights()
            await bench.send(name, weights)
    await bench.end_round(running)


def check_invariants(bench: Bench, folder: Path, keep: int, rounds: list[str], accuracies: list[float]) -> None:
    database = bench.state.database
    number = len(rounds)
    models = {
        version: bench.state.models.of_version(version)
        for version, kind in enumerate("m" + "".join(rounds))
        if kind != "n"
    }
    last = max(models)
    scored = dict(zip([version for version in models if version], accuracies, strict=False))
    best = max(scored, key=lambda version: (scored[version], -version), default=0)
    recent = {version for version in models if version > number - keep}
    base_of_oldest = max((version for version in models if version <= number - keep), default=0)
    needed = {0, last, best, base_of_oldest, *recent}
    kept = {model.digest for version, model in models.items() if version in needed}
    assert {model.digest for model in models.values() if model.kept} == kept
    files = {path.name for path in (folder / "models").iterdir()}
    assert files == {f"{digest.hex}.safetensors" for digest in kept}
    for each, kind in enumerate(rounds, start=1):
        expected = 2 if each > number - keep and kind != "n" else 0
        uploads = finished_uploads(database, folder / "updates", each)
        assert len(uploads) == expected
        assert all(one.update.path.exists() for one in uploads)
    assert retention.orphans(database, folder) == []


async def scenario(folder: Path, rounds: list[str], keep: int, accuracies: list[float]) -> None:
    async with Bench.running(folder, "ab", min_clients=2, keep_rounds=keep, accuracies=accuracies) as bench:
        for number, kind in enumerate(rounds, start=1):
            await play(bench, kind, number)
            check_invariants(bench, folder, keep, rounds[:number], accuracies)
        running = await bench.open_round()  # a round at work, with one update in and one on its way
        await bench.send("a", random_weights(SCHEMA, 100))
        weights = random_weights(SCHEMA, 101)
        await bench.write(await bench.begin("b", weights), weights, stop=700)
        image = image_of(folder, folder.with_name("image"))
        running.cancel()
    (image / "models" / f"{'0' * 64}.safetensors").write_bytes(b"litter")
    (image / "updates" / f"{'0' * 32}.safetensors.partial").write_bytes(b"litter")
    before = {path: path.read_bytes() for path in image.rglob("*.safetensors*") if path.read_bytes() != b"litter"}
    async with Bench.running(image, "ab", min_clients=2, keep_rounds=keep) as bench:  # sweeps
        found = {path: path.read_bytes() for path in image.rglob("*.safetensors*")}
        assert found == before
        assert bench.state.collect(keep, best_versions(bench.federation.history)) == retention.Expired((), ())
        running = await bench.open_round()
        upload_id = bench.part("b").upload_id
        assert bench.desk.status(upload_id).committed_size == 700
        await bench.write(upload_id, weights)
        await bench.desk.finish(upload_id)
        assert (await bench.end_round(running)).model is not None
        reader = StateReader(image)
        verdict = verify(reader)
        reader.close()
        assert verdict.agrees, verdict


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rounds=ROUNDS,
    keep=st.integers(0, 4),
    accuracies=st.lists(st.sampled_from([0.1, 0.5, 0.9]), max_size=8),
)
def test_nothing_referred_to_is_ever_collected(rounds: list[str], keep: int, accuracies: list[float]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(scenario(Path(scratch) / "state", rounds, keep, accuracies))
