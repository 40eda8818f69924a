"""Downloads from a server over a real socket, cut wherever it hurts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from fedclient.download import Downloader
from fedclient.models import ModelStore
from fedstream.errors import UnknownModel
from fedstream.files import RealFileSystem
from fedstream.manifest import Digest
from fedstream.weights_file import WeightsFile
from tests.support.scripted import QUICK, SETTINGS, Model, Scripted, linear_model, scripted

pytestmark = pytest.mark.numpy_task

CHUNK = 4096


@asynccontextmanager
async def downloading(server: Scripted, folder: Path) -> AsyncIterator[tuple[Downloader, ModelStore]]:
    connection = await server.connection(folder)
    store = ModelStore(folder / "models", RealFileSystem())
    store.load()
    try:
        yield Downloader(connection, store, folder / "downloads", RealFileSystem(), QUICK), store
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
        assert list((tmp_path / "downloads").iterdir()) == []


async def test_download_cut_after_every_chunk_asks_for_no_byte_twice(tmp_path: Path) -> None:
    async with scripted() as server:
        size = server.model.manifest.size_bytes
        server.transfer.cuts = [CHUNK] * (size // CHUNK)

        async with downloading(server, tmp_path) as (downloader, _):
            model = await downloader.fetch(server.base, server.schema, CHUNK, ignore)

        assert values_on_disk(model.path) == server.model.values
        assert server.transfer.bytes_out == size
        assert server.transfer.calls.count("ReadChunks") == size // CHUNK + 1


async def test_download_after_a_restart_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    async with scripted() as server:
        async with downloading(server, tmp_path) as (downloader, _):
            await stop_in_the_middle(server, downloader)
        kept = next((tmp_path / "downloads").glob("*.body")).stat().st_size
        async with downloading(server, tmp_path) as (downloader, _):
            model = await downloader.fetch(server.base, server.schema, CHUNK, ignore)

        assert kept == 3 * CHUNK
        assert values_on_disk(model.path) == server.model.values
        assert server.transfer.bytes_out == server.model.manifest.size_bytes


async def stop_in_the_middle(server: Scripted, downloader: Downloader) -> None:
    """Fetch three chunks, and find the model gone then."""
    server.transfer.cuts = [3 * CHUNK]

    def stop(_done: int, _total: int) -> None:
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


async def test_download_that_was_kept_damaged_is_fetched_again(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, _):
        await stop_in_the_middle(server, downloader)
        body = next((tmp_path / "downloads").glob("*.body"))
        data = bytearray(body.read_bytes())
        data[5000] ^= 1
        body.write_bytes(data)

        model = await downloader.fetch(server.base, server.schema, CHUNK, ignore)

        assert values_on_disk(model.path) == server.model.values


async def test_download_of_a_model_that_is_not_published_says_so(tmp_path: Path) -> None:
    async with scripted() as server, downloading(server, tmp_path) as (downloader, _):
        with pytest.raises(UnknownModel):
            await downloader.fetch(Digest.of(b"nothing"), server.schema, CHUNK, ignore)
