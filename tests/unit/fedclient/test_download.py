"""Downloads from a server over a real socket, cut wherever it hurts."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedclient.chunk_size import LEAST_CHUNK_BYTES
from fedclient.connection import Connection
from fedclient.download import Downloader, ForeignModel
from fedclient.events import FederationOutcome, RoundOutcome
from fedclient.global_models import GlobalModels
from fedclient.models import DamagedTensor, ModelStore
from fedstream import limits
from fedstream.errors import TransportError, UnknownModel
from fedstream.files import RealFileSystem
from fedstream.manifest import Digest, ModelRef
from fedstream.schema import ModelSchema
from fedstream.weights_file import WeightsFile, header_of
from tests.support.scripted import QUICK, SETTINGS, Model, Scripted, linear_model, scripted

pytestmark = pytest.mark.numpy_task

CHUNK = 4096


@asynccontextmanager
async def downloading(server: Scripted, folder: Path) -> AsyncIterator[tuple[Downloader, ModelStore]]:
    connection = await server.connection(folder)
    store = ModelStore(folder / "models", RealFileSystem())
    store.load()
    try:
        yield Downloader(connection, store, RealFileSystem(), QUICK), store
    finally:
        await connection.close()


def ignore(_done: int, _total: int) -> None:
    pass


def values_on_disk(path: Path) -> list[bytes]:
    return [array.tobytes() for array in WeightsFile(path).weights().values()]


async def test_download_of_whole_model_is_bit_for_bit_and_survives_a_restart(tmp_path: Path) -> None:
    async with scripted() as server:
        async with downloading(server, tmp_path) as (downloader, _):
            model = await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        async with downloading(server, tmp_path) as (downloader, store):
            again = store.get(server.base)

        assert values_on_disk(model.path) == server.model.values
        assert again == model
        assert server.transfer.bytes_out == server.model.manifest.size_bytes
        assert [path.name for path in (tmp_path / "models").iterdir()] == [f"{server.base.hex}.safetensors"]


async def test_download_cut_after_every_chunk_asks_for_no_byte_twice(tmp_path: Path) -> None:
    async with scripted() as server:
        size = server.model.manifest.size_bytes
        server.transfer.cuts = [CHUNK] * (size // CHUNK)

        told: list[int] = []
        async with downloading(server, tmp_path) as (downloader, _):
            model = await downloader.fetch(server.base, server.schema, CHUNK, lambda done, _total: told.append(done))

        assert values_on_disk(model.path) == server.model.values
        assert server.transfer.bytes_out == size
        assert sum(before == after for before, after in pairwise(told)) == size // CHUNK  # how far it was, at each cut
        assert server.transfer.calls.count("ReadChunks") == size // CHUNK + 1


async def test_download_after_a_restart_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    async with scripted() as server:
        async with downloading(server, tmp_path) as (downloader, _):
            await stop_in_the_middle(server, downloader)
        kept = partial_file(tmp_path).stat().st_size
        async with downloading(server, tmp_path) as (downloader, _):
            model = await downloader.fetch(server.base, server.schema, CHUNK, ignore)

        assert kept == len(header_of(server.model.manifest)) + 3 * CHUNK
        assert values_on_disk(model.path) == server.model.values
        assert server.transfer.bytes_out == server.model.manifest.size_bytes


def partial_file(folder: Path) -> Path:
    return next((folder / "models").glob("*.partial"))


async def stop_in_the_middle(server: Scripted, downloader: Downloader) -> None:
    """Fetch three chunks, and find the model gone then."""
    server.transfer.cuts = [3 * CHUNK]

    def stop(done: int, _total: int) -> None:
        if done:
            server.transfer.refusals["ReadChunks"] = [UnknownModel("gone")]

    with pytest.raises(UnknownModel):
        await downloader.fetch(server.base, server.schema, CHUNK, stop)


async def test_download_of_next_model_asks_only_for_tensors_that_changed(tmp_path: Path) -> None:
    async with scripted() as server:
        changed = dict(zip(server.schema, server.model.values, strict=True))
        _, other = linear_model(SETTINGS, seed=5)
        spec = server.schema["further_00001"]
        changed[spec] = dict(zip(server.schema, other.values, strict=True))[spec]
        successor = model_of_values(server, list(changed.values()))
        digest = server.transfer.publish(successor)

        async with downloading(server, tmp_path) as (downloader, _):
            await downloader.fetch(server.base, server.schema, CHUNK, ignore)
            server.transfer.bytes_out = 0
            model = await downloader.fetch(digest, server.schema, CHUNK, ignore)

        assert values_on_disk(model.path) == successor.values
        assert server.transfer.bytes_out == spec.size_bytes


def model_of_values(server: Scripted, values: list[bytes]) -> Model:
    arrays = {
        spec.name: np.frombuffer(data, spec.dtype.numpy).reshape(spec.shape)
        for spec, data in zip(server.schema, values, strict=True)
    }
    return Model.of(server.schema, arrays)


def other_models(server: Scripted, count: int) -> list[Digest]:
    return [server.transfer.publish(linear_model(SETTINGS, seed=5 + index)[1]) for index in range(count)]


async def test_model_that_is_wanted_does_not_wait_for_one_that_is_fetched_ahead(tmp_path: Path) -> None:
    async with scripted() as server:
        slow, slower = other_models(server, 2)
        server.transfer.held.add(slow.sha256)
        async with downloading(server, tmp_path) as (downloader, store), asyncio.timeout(20):
            first = asyncio.create_task(downloader.fetch_ahead(slow, server.schema, CHUNK))
            await server.transfer.reached.wait()
            second = asyncio.create_task(downloader.fetch_ahead(slower, server.schema, CHUNK))
            await asyncio.gather(first, second)  # the newest wins
            assert (store.get(slow), store.get(slower) is not None) == (None, True)
            await downloader.fetch(server.base, server.schema, CHUNK, ignore)


async def test_model_that_is_wanted_waits_for_its_own_fetch_ahead(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, _):
        ahead = asyncio.create_task(downloader.fetch_ahead(server.base, server.schema, CHUNK))
        await asyncio.sleep(0)
        await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        await ahead
        assert server.transfer.bytes_out == server.model.manifest.size_bytes


async def test_final_models_stay_whatever_is_dropped_while_they_are_fetched(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, store):
        best, last = other_models(server, 2)
        models = GlobalModels(downloader, server.schema)
        await downloader.fetch(best, server.schema, CHUNK, ignore)
        # A process that was started again after round 3 knows of the last round's model alone.
        over = RoundOutcome(9, True, "", "", "", ModelRef(9, last), {"accuracy": 0.7})
        await models.fetch_ahead(over)
        models.keep_final(FederationOutcome("", ModelRef(9, last), ModelRef(3, best), {}))
        await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        await models.keep_only(set)
        assert [store.get(digest) is not None for digest in (best, last, server.base)] == [True, True, False]


async def test_models_can_be_dropped_while_tensors_are_listed(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, store):
        dropped = other_models(server, 3)
        for digest in dropped:
            await downloader.fetch(digest, server.schema, CHUNK, ignore)
        await asyncio.gather(
            downloader.fetch(server.base, server.schema, CHUNK, ignore),
            *(downloader.keep_only(lambda: {server.base}) for _ in range(3)),
        )
        assert store.get(server.base) is not None
        assert [store.get(digest) for digest in dropped] == [None] * 3


async def test_download_that_was_kept_damaged_is_fetched_again(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, _):
        await stop_in_the_middle(server, downloader)
        partial = partial_file(tmp_path)
        data = bytearray(partial.read_bytes())
        data[5000] ^= 1
        partial.write_bytes(data)

        model = await downloader.fetch(server.base, server.schema, CHUNK, ignore)

        assert values_on_disk(model.path) == server.model.values


async def test_download_whose_source_of_known_tensors_is_damaged_meanwhile_fetches_them_again(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, store):
        values = [*server.model.values[:-1], linear_model(SETTINGS, seed=5)[1].values[-1]]
        successor = model_of_values(server, values)
        digest = server.transfer.publish(successor)
        base = await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        data = bytearray(base.path.read_bytes())
        data[len(data) // 2] ^= 1
        base.path.write_bytes(data)

        model = await downloader.fetch(digest, server.schema, CHUNK, ignore)

        assert values_on_disk(model.path) == successor.values
        assert store.get(server.base) is None


async def test_download_whose_bytes_never_match_their_digests_gives_up(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, store):
        other = linear_model(SETTINGS, seed=5)[1].values
        digest = server.transfer.publish(Model(server.model.manifest, other))

        with pytest.raises(DamagedTensor):
            await downloader.fetch(digest, server.schema, CHUNK, ignore)

        assert server.transfer.calls == ["GetManifest", "ReadChunks"] * 3
        assert store.get(digest) is None


async def test_model_whose_file_somebody_removed_is_downloaded_again(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, _):
        model = await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        model.path.unlink()
        again = await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        assert values_on_disk(again.path) == server.model.values


async def test_download_takes_nothing_from_a_model_whose_file_somebody_removed(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, _):
        model = await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        model.path.unlink()
        (other,) = other_models(server, 1)
        fetched = await downloader.fetch(other, server.schema, CHUNK, ignore)
        assert fetched.digest == other


async def test_model_whose_folder_somebody_removed_is_downloaded_again(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, _):
        model = await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        shutil.rmtree(model.path.parent)
        again = await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        assert values_on_disk(again.path) == server.model.values


async def test_models_are_not_forgotten_while_the_state_folder_is_away(tmp_path: Path) -> None:
    here, away = tmp_path / "state", tmp_path / "away"
    here.mkdir()
    async with scripted() as server, downloading(server, here) as (downloader, store):
        await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        here.rename(away)
        await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        assert not here.exists()
        away.rename(here)
        model = store.get(server.base)
        assert model is not None
        assert values_on_disk(model.path) == server.model.values


async def test_download_of_another_model_drops_what_was_begun_of_the_one_before(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, _):
        await stop_in_the_middle(server, downloader)
        _, other = linear_model(SETTINGS, seed=5)
        digest = server.transfer.publish(other)
        await downloader.fetch(digest, server.schema, CHUNK, ignore)

        assert [path.name for path in (tmp_path / "models").iterdir()] == [f"{digest.hex}.safetensors"]


async def test_download_writes_every_byte_once_and_syncs_none(tmp_path: Path) -> None:
    files = CountingFiles()
    async with scripted() as server:
        connection = await server.connection(tmp_path)
        store = ModelStore(tmp_path / "models", files)
        store.load()
        model = await Downloader(connection, store, files, QUICK).fetch(server.base, server.schema, CHUNK, ignore)
        await connection.close()

    assert (files.written, files.syncs) == (model.path.stat().st_size, 0)


class CountingFiles(RealFileSystem):
    """Counts bytes written, and syncs of files and folders."""

    def __init__(self) -> None:
        self.written = 0
        self.syncs = 0

    def write_at(self, descriptor: int, offset: int, data: bytes | memoryview) -> None:
        self.written += memoryview(data).nbytes
        super().write_at(descriptor, offset, data)

    def sync(self, descriptor: int) -> None:
        self.syncs += 1
        super().sync(descriptor)

    def sync_folder(self, folder: Path) -> None:
        self.syncs += 1
        super().sync_folder(folder)


@pytest.mark.parametrize(
    ("down", "most_bytes"), [(False, LEAST_CHUNK_BYTES), (True, limits.MAX_CHUNK_BYTES)], ids=["cut", "server down"]
)
async def test_download_takes_smaller_chunks_after_a_cut_and_not_for_a_server_that_was_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, down: bool, most_bytes: int
) -> None:
    monkeypatch.setattr(Connection, "is_out_of_reach", down)
    async with scripted() as server:
        server.transfer.cuts = [0]
        connection = await server.connection(tmp_path)
        store = ModelStore(tmp_path / "models", RealFileSystem())
        store.load()
        await Downloader(connection, store, RealFileSystem(), QUICK).fetch(server.base, server.schema, CHUNK, ignore)
        await connection.close()

    assert server.transfer.calls.count("ReadChunks") == 2
    assert connection.chunk_size.most_bytes == most_bytes


async def test_download_of_a_model_that_is_not_published_says_so(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, _):
        with pytest.raises(UnknownModel):
            await downloader.fetch(Digest.of(b"nothing"), server.schema, CHUNK, ignore)


async def test_manifest_with_more_tensors_than_any_model_may_have_is_given_up_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted() as server:
        monkeypatch.setattr(limits, "MAX_TENSORS", 2)
        connection, store = await server.connection(tmp_path), ModelStore(tmp_path / "models", RealFileSystem())
        downloader = Downloader(connection, store, RealFileSystem(), replace(QUICK, give_up_after_seconds=0.05))
        with pytest.raises(TransportError, match="the server's manifest has over 2 tensors"):
            await downloader.fetch(server.base, server.schema, CHUNK, ignore)
        await connection.close()


async def test_download_of_a_model_of_another_schema_is_not_tried_again(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, _):
        first, *others = server.schema
        wider = replace(first, shape=(*first.shape, 2))
        with pytest.raises(ForeignModel, match=f"tensor {first.name} should be"):
            await downloader.fetch(server.base, ModelSchema((wider, *others)), CHUNK, ignore)
