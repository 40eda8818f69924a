"""Updates that travel encoded: decoded while they come, and stored as any other update is. A moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedserver.store.updates import UpdateFacts
from fedserver.store.upload_file import Upload
from fedstream.dtypes import DataType
from fedstream.encodings import Encoded, Encoding, encode
from fedstream.errors import DigestMismatch, RoundClosed
from fedstream.files import RealFileSystem
from fedstream.manifest import Digest, Manifest, TensorEntry, raw_bytes
from tests.unit.fedstream.examples import same_bits

pytestmark = pytest.mark.numpy_task

LARGE = 300_001  # over a MiB: decoded in more than one piece
RNG = np.random.default_rng(5)
BASE = {
    "large": RNG.standard_normal(LARGE).astype(np.float32),
    "bias": RNG.standard_normal(7).astype(np.float32),
    "kernel": RNG.standard_normal((64, 32)).astype(np.float32),
    "steps": np.arange(40_000, dtype=np.int64),
}
Begin = Callable[..., Upload]


def made(encoding: Encoding) -> tuple[Manifest, UpdateFacts, bytes, dict[str, np.ndarray]]:
    """An update in that encoding: manifest, facts, body, and the values that arrive."""
    entries, encoded, parts, values = [], {}, [], {}
    for name, started in BASE.items():
        if started.dtype != np.float32:
            how, data, arrived = Encoding.ZSTD, encode(Encoding.ZSTD, started + 1), started + 1
        elif name == "bias":
            how, data, arrived = Encoding.RAW, bytes(raw_bytes(started + 1)), started + 1
        else:
            how = encoding
            moved = np.float32(0.5) * np.ones_like(started)  # which every encoding carries exactly
            data, arrived = encode(how, moved if how.is_lossy else started + moved), started + moved
        entries.append(TensorEntry(name, DataType.of(arrived.dtype), arrived.shape, Digest.of(raw_bytes(arrived))))
        if how is not Encoding.RAW:
            encoded[name] = Encoded(how, len(data))
        parts.append(data)
        values[name] = arrived
    return Manifest(tuple(entries)), UpdateFacts(10, encoded=encoded), b"".join(parts), values


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """Makes the upload, as often as a process starts."""

    def begin(manifest: Manifest, facts: UpdateFacts, committed_size: int = 0) -> Upload:
        path = tmp_path / "u.safetensors"
        return Upload(path, manifest, range(len(manifest)), facts, RealFileSystem(), committed_size)

    return begin


def receive(upload: Upload, body: bytes, end: int | None = None) -> None:
    part = body[: len(body) if end is None else end]
    upload.write(upload.received_size, part[upload.received_size :])
    upload.committed(upload.sync())


@pytest.mark.parametrize("encoding", [each for each in Encoding if each is not Encoding.RAW])
def test_update_is_decoded_while_it_comes_to_the_file_that_a_raw_one_makes(
    begin: Begin, tmp_path: Path, encoding: Encoding
) -> None:
    manifest, facts, body, values = made(encoding)
    upload = begin(manifest, facts)
    assert upload.size_bytes == len(body)
    shown: dict[str, list[np.ndarray]] = {}
    for end in range(0, len(body), 50_000):
        receive(upload, body, end)
        upload.verify(BASE, lambda name, place, piece: shown.setdefault(name, []).append(piece.copy()))
    receive(upload, body)
    upload.verify(BASE, lambda name, place, piece: shown.setdefault(name, []).append(piece.copy()))
    upload.seal()

    assert same_bits(upload.update().tensors(), values)
    assert same_bits(
        {name: np.concatenate(pieces).reshape(values[name].shape) for name, pieces in shown.items()}, values
    )
    upload.update().check()
    assert [path.name for path in tmp_path.iterdir()] == ["u.safetensors"]


@pytest.mark.parametrize("encoding", [Encoding.INT8, Encoding.BFLOAT16_ZSTD])
def test_update_taken_up_by_the_next_process_is_decoded_from_the_start(begin: Begin, encoding: Encoding) -> None:
    manifest, facts, body, values = made(encoding)
    first = begin(manifest, facts)
    receive(first, body, len(body) - 1000)
    first.verify(BASE)
    second = begin(manifest, facts, committed_size=first.committed_size)
    assert second.received_size == len(body) - 1000
    receive(second, body)
    second.verify(BASE)
    second.seal()
    assert same_bits(second.update().tensors(), values)


def test_update_sealed_but_not_recorded_is_verified_as_it_stands(begin: Begin) -> None:
    manifest, facts, body, values = made(Encoding.INT8)
    first = begin(manifest, facts)
    receive(first, body)
    first.verify(BASE)
    first.seal()
    second = begin(manifest, facts, committed_size=len(body))
    second.verify({})
    second.seal()
    assert same_bits(second.update().tensors(), values)


@pytest.mark.parametrize("encoding", [Encoding.INT8, Encoding.INT8_ZSTD, Encoding.BFLOAT16, Encoding.ZSTD])
def test_one_bit_flipped_anywhere_is_found(begin: Begin, tmp_path: Path, encoding: Encoding) -> None:
    manifest, facts, body, _ = made(encoding)
    for place in np.random.default_rng(6).integers(0, len(body), 40):
        damaged = bytearray(body)
        damaged[place] ^= 1 << int(place) % 8
        upload = begin(manifest, facts)
        receive(upload, bytes(damaged))
        try:
            upload.verify(BASE)
        except DigestMismatch:
            upload.drop()
            assert list(tmp_path.iterdir()) == []
            continue
        upload.seal()  # a bit that means nothing, such as a frame's unused one: the values are what they must be
        upload.update().check()
        upload.drop()


def test_update_of_another_base_is_found(begin: Begin) -> None:
    manifest, facts, body, _ = made(Encoding.INT8)
    upload = begin(manifest, facts)
    receive(upload, body)
    with pytest.raises(DigestMismatch, match="tensor large"):
        upload.verify({**BASE, "large": BASE["large"] + 1})


def test_update_dropped_is_not_decoded_to_a_file_that_nobody_removes(begin: Begin, tmp_path: Path) -> None:
    manifest, facts, body, _ = made(Encoding.INT8)
    upload = begin(manifest, facts)
    receive(upload, body)
    upload.drop()
    with pytest.raises(RoundClosed):
        upload.verify(BASE)
    assert list(tmp_path.iterdir()) == []
