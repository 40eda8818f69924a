"""Updates on their way in: written, made durable, verified, sealed, dropped, and taken up again. A moment."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fedserver.store.updates import UpdateFacts
from fedserver.store.upload_file import Upload
from fedstream import limits
from fedstream.body import BodyReader
from fedstream.encodings import Encoded, Encoding, encode
from fedstream.errors import DigestMismatch, RoundClosed, WrongOffset
from fedstream.files import RealFileSystem
from fedstream.manifest import Digest, Manifest, manifest_of, raw_bytes
from tests.unit.fedstream.examples import AWKWARD, entry, random_weights, same_bits

pytestmark = pytest.mark.numpy_task

WEIGHTS = random_weights()
MANIFEST = manifest_of(AWKWARD, WEIGHTS)
MISSING = [0, 3, 5, 12, 14, 15, 16]
"""Indexes; among them the tensor without elements, the scalar and types of every width."""
BODY = b"".join(bytes(raw_bytes(WEIGHTS[MANIFEST.entries[index].name])) for index in MISSING)
FACTS = UpdateFacts(10, {"loss": 0.5})

Begin = Callable[..., Upload]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """Makes the upload, as often as a process starts."""

    def make(committed_size: int = 0, manifest: Manifest = MANIFEST, files: RealFileSystem | None = None) -> Upload:
        path = tmp_path / "u.safetensors"
        return Upload(path, manifest, MISSING, FACTS, files or RealFileSystem(), committed_size)

    return make


def receive(upload: Upload, body: bytes = BODY, chunk_bytes: int = 7) -> None:
    for offset in range(upload.received_size, len(body), chunk_bytes):
        upload.write(offset, body[offset : offset + chunk_bytes])
    upload.committed(upload.sync())


def finish(upload: Upload) -> dict[str, np.ndarray]:
    upload.committed(upload.sync())
    upload.verify({})
    upload.seal()
    return upload.update().tensors()


def expected() -> dict[str, np.ndarray]:
    return {MANIFEST.entries[index].name: WEIGHTS[MANIFEST.entries[index].name] for index in MISSING}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("chunk_bytes", [*range(1, 20), 1_000])
def test_upload_in_chunks_of_every_size_becomes_a_file_of_the_missing_tensors(
    begin: Begin, tmp_path: Path, chunk_bytes: int
) -> None:
    upload = begin()
    assert (upload.size_bytes, upload.received_size, upload.committed_size) == (len(BODY), 0, 0)
    receive(upload, chunk_bytes=chunk_bytes)
    assert upload.sync() == len(BODY)
    assert same_bits(finish(upload), expected())
    assert names_in(tmp_path) == ["u.safetensors"]
    theirs = safetensors.numpy.load_file(tmp_path / "u.safetensors")
    assert same_bits({name: theirs[name] for name in expected()}, expected())


def test_upload_of_what_is_there_already_adds_only_what_is_new(begin: Begin) -> None:
    upload = begin()
    upload.write(0, BODY[:10])
    upload.write(4, BODY[4:8])
    assert upload.received_size == 10
    upload.write(3, BODY[3:])
    assert upload.received_size == len(BODY)
    assert same_bits(finish(upload), expected())


def test_upload_with_a_gap_is_refused_with_where_to_resume(begin: Begin) -> None:
    upload = begin()
    upload.write(0, BODY[:10])
    upload.committed(upload.sync())
    upload.write(10, BODY[10:15])
    with pytest.raises(WrongOffset) as caught:
        upload.write(16, BODY[16:20])
    assert caught.value.metadata == {"committed_size": "10"}
    assert upload.received_size == 15


def test_committed_size_never_decreases(begin: Begin) -> None:
    upload = begin()
    upload.write(0, BODY[:20])
    for size, known in ((5, 5), (20, 20), (7, 20)):
        upload.committed(size)
        assert upload.committed_size == known


def test_upload_wants_a_commit_at_half_a_window_and_at_the_end(begin: Begin, tmp_path: Path) -> None:
    half = limits.WINDOW_BYTES // 2
    size = 2 * half + 10
    large = Manifest((entry("large", shape=(size // 4,), size_bytes=size // 4 * 4),))
    upload = Upload(tmp_path / "l.safetensors", large, [0], FACTS, RealFileSystem())
    wanted = []
    for length in (half - 1, 1, upload.size_bytes - half - 1, 1):
        upload.write(upload.received_size, bytes(length))
        wanted.append(upload.wants_commit(limits.WINDOW_BYTES))
        if wanted[-1]:
            upload.committed(upload.sync())
            assert not upload.wants_commit(limits.WINDOW_BYTES)
    assert wanted == [False, True, True, True]
    upload.drop()


def test_upload_of_nothing_is_complete_at_once(tmp_path: Path) -> None:
    upload = Upload(tmp_path / "n.safetensors", MANIFEST, [], FACTS, RealFileSystem())
    assert (upload.size_bytes, upload.wants_commit(limits.WINDOW_BYTES)) == (0, False)
    assert finish(upload) == {}


# What is not as its digest says.


@pytest.mark.parametrize("place", [0, 2, 3, 40, len(BODY) - 1])
def test_upload_with_one_bit_flipped_is_found_by_its_tensor(begin: Begin, tmp_path: Path, place: int) -> None:
    body = bytearray(BODY)
    body[place] ^= 0x10
    upload = begin()
    receive(upload, bytes(body))
    ends = np.cumsum([MANIFEST.entries[index].size_bytes for index in MISSING])
    name = MANIFEST.entries[MISSING[int(np.searchsorted(ends, place, side="right"))]].name
    with pytest.raises(DigestMismatch) as caught:
        upload.verify({})
    assert caught.value.metadata == {"tensor": name}
    assert caught.value.message == (f"tensor {name} does not match its digest; put the manifest again and start at 0")
    upload.drop()
    again = begin()
    receive(again)
    assert same_bits(finish(again), expected())


def test_upload_with_one_bit_of_its_header_flipped_does_not_verify(begin: Begin, tmp_path: Path) -> None:
    upload = begin()
    receive(upload)
    (partial,) = tmp_path.rglob("*.partial")
    data = bytearray(partial.read_bytes())
    data[20] ^= 0x10
    partial.write_bytes(data)
    with pytest.raises(DigestMismatch, match="damaged in its header"):
        upload.verify({})


def test_upload_cut_short_is_not_sealed(begin: Begin) -> None:
    upload = begin()
    receive(upload, BODY[:-1])
    upload.verify({})
    with pytest.raises(AssertionError, match="verified"):
        upload.seal()


def test_upload_verified_while_it_comes_is_shown_once_and_in_order(begin: Begin) -> None:
    upload = begin()
    shown: dict[str, list[tuple[int, np.ndarray]]] = {}

    def look(name: str, place: int, values: np.ndarray) -> None:
        shown.setdefault(name, []).append((place, values.copy()))

    for end in range(1, len(BODY) + 1):
        receive(upload, BODY[:end], chunk_bytes=1)
        upload.verify({}, look)
    assert not upload.has_unverified
    assert same_bits(finish(upload), expected())
    assert list(shown) == [name for name, values in expected().items() if values.size]
    for name, pieces in shown.items():
        ((place, values),) = pieces
        assert place == 0
        assert same_bits({name: values}, {name: expected()[name].reshape(-1)})


def test_upload_damaged_while_it_comes_is_found_when_it_is_looked_at(begin: Begin) -> None:
    upload = begin()
    first = MANIFEST.entries[MISSING[0]]
    receive(upload, b"\x7f" * first.size_bytes)
    for _ in range(2):  # whoever asks ahead of the end does not take the answer with it
        with pytest.raises(DigestMismatch, match=first.name):
            upload.verify({})


def test_upload_of_a_manifest_that_lies_about_an_empty_tensor_does_not_verify(begin: Begin) -> None:
    place = MISSING.index(next(index for index in MISSING if MANIFEST.entries[index].size_bytes == 0))
    index = MISSING[place]
    lie = replace(MANIFEST.entries[index], digest=Digest(b"\x01" * 32, 0))
    upload = begin(manifest=Manifest((*MANIFEST.entries[:index], lie, *MANIFEST.entries[index + 1 :])))
    receive(upload)
    with pytest.raises(DigestMismatch):
        upload.verify({})


# Dropped.


def test_upload_dropped_leaves_nothing_and_takes_nothing_more(begin: Begin, tmp_path: Path) -> None:
    upload = begin()
    upload.write(0, BODY[:10])
    upload.drop()
    upload.drop()
    assert names_in(tmp_path) == []
    with pytest.raises(RoundClosed, match="this upload was dropped or is finished"):
        upload.write(10, BODY[10:])
    assert names_in(tmp_path) == []


def test_upload_sealed_takes_nothing_more_and_sealing_again_changes_nothing(begin: Begin, tmp_path: Path) -> None:
    upload = begin()
    receive(upload)
    finish(upload)
    content = (tmp_path / "u.safetensors").read_bytes()
    upload.seal()
    with pytest.raises(RoundClosed):
        upload.write(len(BODY), b"more")
    assert (tmp_path / "u.safetensors").read_bytes() == content


def test_upload_sealed_and_dropped_leaves_nothing(begin: Begin, tmp_path: Path) -> None:
    upload = begin()
    receive(upload)
    finish(upload)
    upload.drop()
    assert names_in(tmp_path) == []


# Taken up by another process.


@pytest.mark.parametrize("committed", range(0, len(BODY) + 1, 9))
def test_upload_taken_up_again_goes_on_at_what_was_committed(begin: Begin, committed: int) -> None:
    earlier = begin()
    receive(earlier, BODY[: committed + 5])
    earlier.sync()
    upload = begin(committed_size=committed)
    assert (upload.received_size, upload.committed_size) == (committed, committed)
    receive(upload)
    assert same_bits(finish(upload), expected())


def test_upload_taken_up_again_whose_file_lost_what_was_committed_begins_anew(begin: Begin, tmp_path: Path) -> None:
    earlier = begin()
    receive(earlier, BODY[:30])
    partial = next(tmp_path.iterdir())
    with partial.open("r+b") as file:
        file.truncate(partial.stat().st_size - 1)
    upload = begin(committed_size=30)
    assert (upload.received_size, upload.committed_size) == (0, 0)
    receive(upload)
    assert same_bits(finish(upload), expected())


def test_upload_taken_up_again_after_it_was_sealed_is_complete(begin: Begin) -> None:
    earlier = begin()
    receive(earlier)
    finish(earlier)
    upload = begin(committed_size=10)
    assert (upload.received_size, upload.committed_size) == (len(BODY), len(BODY))
    assert same_bits(finish(upload), expected())


class FailingSync(RealFileSystem):
    """A disk that refuses to sync as often as told."""

    failures = 1

    def sync(self, descriptor: int) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EIO, "Input/output error")
        super().sync(descriptor)


def test_upload_whose_sync_failed_asks_again_for_what_was_not_committed(begin: Begin) -> None:
    files = FailingSync()
    files.failures = 0
    upload = begin(files=files)
    upload.write(0, BODY[:10])
    upload.committed(upload.sync())
    upload.write(10, BODY[10:20])
    files.failures = 1
    with pytest.raises(OSError, match="Input/output"):
        upload.sync()
    assert (upload.received_size, upload.committed_size) == (10, 10)
    with pytest.raises(WrongOffset):
        upload.write(20, BODY[20:])
    receive(upload)
    assert upload.sync() == len(BODY)
    assert same_bits(finish(upload), expected())


class SlowSync(RealFileSystem):
    """A disk whose fsync ends when it is told to, and fails if it is to."""

    def __init__(self, error: OSError | None = None) -> None:
        self.begun, self.go_on, self.error = threading.Event(), threading.Event(), error

    def sync(self, descriptor: int) -> None:
        self.begun.set()
        assert self.go_on.wait(20.0)
        if self.error is not None:
            raise self.error
        super().sync(descriptor)


def test_upload_takes_more_while_it_is_synced_and_the_sync_vouches_for_what_was_there_before(begin: Begin) -> None:
    files = SlowSync()
    upload = begin(files=files)
    upload.write(0, BODY[:10])
    with ThreadPoolExecutor(1) as thread:
        synced = thread.submit(upload.sync)
        assert files.begun.wait(20.0)
        upload.write(10, BODY[10:])
        assert upload.received_size == len(BODY)
        files.go_on.set()
        assert synced.result() == 10
    assert upload.sync() == len(BODY)
    assert same_bits(finish(upload), expected())


def test_upload_whose_sync_fails_takes_back_what_came_meanwhile_too(begin: Begin) -> None:
    files = SlowSync(OSError(errno.EIO, "Input/output error"))
    upload = begin(files=files)
    upload.write(0, BODY[:10])
    with ThreadPoolExecutor(1) as thread:
        synced = thread.submit(upload.sync)
        assert files.begun.wait(20.0)
        upload.write(10, BODY[10:20])
        files.go_on.set()
        with pytest.raises(OSError, match="Input/output"):
            synced.result()
    assert (upload.received_size, upload.committed_size) == (0, 0)


def test_upload_dropped_while_it_is_synced_keeps_its_descriptor_until_the_sync_has_ended(
    begin: Begin, tmp_path: Path
) -> None:
    files = SlowSync()
    upload = begin(files=files)
    upload.write(0, BODY[:10])
    with ThreadPoolExecutor(2) as threads:
        synced = threads.submit(upload.sync)
        assert files.begun.wait(20.0)
        dropped = threads.submit(upload.drop)
        with pytest.raises(TimeoutError):
            dropped.result(0.1)
        files.go_on.set()
        assert (synced.result(), dropped.result()) == (10, None)
    assert names_in(tmp_path) == []


def test_body_read_back_from_a_sealed_update_is_what_was_sent(begin: Begin, tmp_path: Path) -> None:
    from fedstream.weights_file import WeightsFile

    upload = begin()
    receive(upload)
    finish(upload)
    file = WeightsFile(tmp_path / "u.safetensors")
    with BodyReader([file.span(name) for name in file.names]) as body:
        assert b"".join(chunk.data for chunk in body.chunks(0, 13)) == BODY


class ForgetfulDisk(RealFileSystem):
    """After a failed fsync, what was not on the medium is not written by the next one either: as on Linux."""

    def __init__(self) -> None:
        self.medium: dict[Path, bytearray] = {}
        self.fails_once = ""
        self._opened: dict[int, Path] = {}
        self._unsynced: dict[Path, list[tuple[int, bytes]]] = {}

    def open(self, path: Path) -> int:
        descriptor = super().open(path)
        self._opened[descriptor] = path
        return descriptor

    def write_at(self, descriptor: int, offset: int, data: bytes | memoryview) -> None:
        super().write_at(descriptor, offset, data)
        self._unsynced.setdefault(self._opened[descriptor], []).append((offset, bytes(data)))

    def sync(self, descriptor: int) -> None:
        path = self._opened[descriptor]
        unsynced = self._unsynced.pop(path, [])
        if self.fails_once and path.name.endswith(self.fails_once):
            self.fails_once = ""
            raise OSError(errno.EIO, "Input/output error")
        content = self.medium.setdefault(path, bytearray())
        for offset, data in unsynced:
            content.extend(bytes(max(0, offset + len(data) - len(content))))
            content[offset : offset + len(data)] = data

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.medium[target] = self.medium.pop(source, bytearray())


def test_header_that_a_failed_fsync_lost_is_written_again(begin: Begin) -> None:
    disk = ForgetfulDisk()
    upload = begin(files=disk)
    disk.fails_once = ".partial"
    with pytest.raises(OSError, match="Input/output"):
        receive(upload)
    receive(upload)
    finish(upload)
    assert bytes(disk.medium[upload.path]) == upload.path.read_bytes()


def test_values_that_a_failed_fsync_lost_are_decoded_again(tmp_path: Path) -> None:
    disk, entry_ = ForgetfulDisk(), MANIFEST.entries[0]
    body = encode(Encoding.ZSTD, WEIGHTS[entry_.name])
    facts = replace(FACTS, encoded={entry_.name: Encoded(Encoding.ZSTD, len(body))})
    upload = Upload(tmp_path / "u.safetensors", MANIFEST, [0], facts, disk)
    upload.write(0, body)
    upload.committed(upload.sync())
    upload.verify({})
    disk.fails_once = "safetensors.partial"
    with pytest.raises(OSError, match="Input/output"):
        upload.seal()
    assert upload.has_unverified
    upload.verify({})
    upload.seal()
    assert bytes(disk.medium[upload.path]) == upload.path.read_bytes()
