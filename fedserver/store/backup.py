"""A copy of a state directory that a server may be at work on; `fedserver.store.restore` is the way back.

The database is copied first, as it is at one instant, and then the files that this copy names. Files never change once
a row names them, and none is collected while a backup holds the collection's lock; an upload on its way grows, and just
the bytes that the copied row calls committed are taken of it. So what is restored is the state of that one instant.

A backup is a folder, or a file that ends in `.tar` (weights hardly shrink by packing them), with the names that the
state directory has and, last, `backup.json`: the sha256 and size of every file. It appears under its name when it is
complete, and not before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol

from filelock import FileLock

from fedserver.store.blobs import BLOCK_BYTES, check_file
from fedserver.store.database import Database
from fedserver.store.folder import ADDRESSES, AUDIT_LOG, COLLECTION_LOCK, DATABASE, MODELS, UPDATES
from fedserver.store.keys import IDENTITY_FILES, KEY
from fedserver.store.models import WAY_OUT as MODEL_WAY_OUT
from fedserver.store.reading import StateReader
from fedserver.store.updates import WAY_OUT, WAY_OUT_OVER
from fedserver.store.upload_file import on_their_way
from fedserver.store.uploads import UploadState, entries_of, file_of, is_encoded
from fedstream.errors import FedstreamError
from fedstream.files import TEMPORARY_SUFFIX, RealFileSystem, publish, sync_to_medium
from fedstream.manifest import parse_canonical
from fedstream.weights_file import header_of

FORMAT = "fedstream backup v1"
CONTENTS = "backup.json"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
_LOCK_SECONDS = 60.0


class BackupError(FedstreamError):
    """A backup cannot be made, read or restored. The message says why and what to do."""


class WrongBackup(BackupError):
    """What was named is the matter: a place that is taken or does not do, or a file that is no backup or damaged."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup holds: names with `[sha256 in hexadecimal, bytes]`."""

    files: Mapping[str, tuple[str, int]]

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(size for _, size in self.files.values())

    @property
    def has_key(self) -> bool:
        """Whether the private keys of the server and of the federation's authority are in it."""
        return KEY in self.files


class Source(Protocol):
    """What bytes are read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to so many bytes."""


class Sink(Protocol):
    """Where a backup is written to."""

    def add(self, name: str, source: Source, size_bytes: int) -> None:
        """Take the next `size_bytes` bytes of `source` as the file `name`."""


def back_up(state: Path, out: Path) -> Contents:
    """Copy a state directory to a folder or tar file that does not exist yet.

    Raises:
        StateError: `state` is no state directory, or damaged.
        DamagedFile: a file that is needed for what is stored is not what it was.
        WrongBackup: `out` is there already, or no place for a backup.
        BackupError: `out` cannot be written.
    """
    if out.exists():
        raise WrongBackup(f"{out} is there already; give a name that is not")
    if out.name.endswith(_PACKED):
        raise WrongBackup(f"{out} would be packed, which hardly shrinks weights: give a name in .tar, or of a folder")
    reader = StateReader(state)
    try:
        if out.resolve().is_relative_to(reader.folder):
            raise WrongBackup(f"{out} is in the state directory, and would be lost with it; give a place outside")
        with _no_collection(reader.folder), _sink(out) as sink:
            return _copy(reader, sink, out.parent)
    except (OSError, tarfile.TarError) as error:
        raise BackupError(f"the backup to {out} failed ({error}); nothing of it is kept") from error
    finally:
        reader.close()


@contextmanager
def _no_collection(folder: Path) -> Iterator[None]:
    if not os.access(folder, os.W_OK):  # on a read-only medium nobody collects
        yield
        return
    with FileLock(folder / COLLECTION_LOCK, timeout=_LOCK_SECONDS, mode=0o600):
        yield


def _copy(reader: StateReader, sink: Sink, scratch_folder: Path) -> Contents:
    files: dict[str, tuple[str, int]] = {}

    def add(name: str, path: Path, size_bytes: int | None = None) -> None:
        with path.open("rb") as source:
            hashing = HashingSource(source)
            size = os.fstat(source.fileno()).st_size if size_bytes is None else size_bytes
            sink.add(name, hashing, size)
            files[name] = (hashing.sha256.hexdigest(), size)

    with tempfile.TemporaryDirectory(prefix=".fedserver-backup-", dir=scratch_folder) as scratch:
        path = Path(scratch) / DATABASE
        reader.database.copy_to(path)
        copied = Database(path)
        try:
            for name, source, size_bytes in named_files(copied, reader.folder):
                add(name, source, size_bytes)
        finally:
            copied.close()
        add(DATABASE, path)
    for name in (*IDENTITY_FILES, AUDIT_LOG, ADDRESSES):
        if (reader.folder / name).exists():
            add(name, reader.folder / name)
    text = json.dumps({"format": FORMAT, "files": files}, indent=1).encode()
    sink.add(CONTENTS, BytesIO(text), len(text))
    return Contents(files)


def named_files(database: Database, folder: Path) -> Iterator[tuple[str, Path, int | None]]:
    """Name, place and size (`None` for all) of every file that the rows name, each checked against its manifest.

    Of an upload on its way the bytes may not be there (any more): then there is none, and its site will begin it again.

    Raises:
        DamagedFile: one is missing or not what it was.
    """
    for sha256, manifest in database.query("SELECT sha256, manifest FROM models WHERE kept = 1"):
        path = folder / MODELS / f"{sha256.hex()}.safetensors"
        check_file(path, parse_canonical(manifest).entries, MODEL_WAY_OUT)
        yield f"{MODELS}/{path.name}", path, None
    at_work = {number for (number,) in database.query("SELECT number FROM open_rounds")}
    sql = "SELECT upload_id, round, manifest, missing, facts, committed_size, state FROM uploads"
    for upload_id, number, manifest, missing, facts, committed, state in database.query(sql):
        path, entries = file_of(folder / UPDATES, upload_id), entries_of(manifest, missing)
        if state != UploadState.OPEN.value:
            check_file(path, entries, WAY_OUT if number in at_work else WAY_OUT_OVER)
            yield f"{UPDATES}/{path.name}", path, None
        elif number in at_work:
            yield from _on_its_way(_copies(path, header_of(entries), committed, is_encoded(facts, entries)))


@dataclass(frozen=True, slots=True)
class _Copy:
    """How an upload on its way can be in a backup: `size` bytes, `None` for all, of a file that begins with `start`."""

    path: Path
    start: bytes
    size: int | None
    name: str


def _copies(path: Path, header: bytes, committed: int, encoded: bool) -> list[_Copy]:
    """Of an upload whose update will be at `path`, up to what is committed. It may be there by now."""
    values, body = on_their_way(path)
    if encoded:
        return [_Copy(body, b"", committed, body.name), _Copy(path, header, None, path.name)]
    size = len(header) + committed
    return [_Copy(values, header, size, values.name), _Copy(path, header, size, values.name)]


def _on_its_way(copies: Sequence[_Copy]) -> Iterator[tuple[str, Path, int | None]]:
    """The first copy that can be had. The upload may have been finished, dropped or begun anew meanwhile."""
    for copy in copies:
        try:
            with copy.path.open("rb") as file:
                is_same = file.read(len(copy.start)) == copy.start
                is_whole = os.fstat(file.fileno()).st_size >= (copy.size or 0)
        except FileNotFoundError:
            continue
        if is_same and is_whole:
            yield f"{UPDATES}/{copy.name}", copy.path, copy.size
            return


class HashingSource:
    """A source that is hashed as it is read."""

    def __init__(self, file: Source) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        """Up to so many bytes."""
        data = self._file.read(size)
        self.sha256.update(data)
        return data


@contextmanager
def _sink(out: Path) -> Iterator[Sink]:
    """A sink whose result appears under its name at the end, durably, or not at all."""
    unfinished = out.with_name(f"{out.name}{TEMPORARY_SUFFIX}")
    if unfinished.exists():
        raise BackupError(f"{unfinished} is there: another backup is being made, or one broke off; remove it first")
    try:
        if out.suffix != ".tar":
            unfinished.mkdir(mode=0o700, parents=True)
            yield FolderSink(unfinished)
            for folder in {path.parent for path in unfinished.rglob("*")}:
                RealFileSystem().sync_folder(folder)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            with _private(unfinished) as file:
                with tarfile.open(fileobj=file, mode="w") as tar:
                    yield _TarSink(tar)
                _sync(file)
        publish(RealFileSystem(), unfinished, out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        if unfinished.is_file():
            unfinished.unlink()
        raise


class FolderSink:
    """Files in a folder, readable by their owner only, each on the medium when it is added."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, source: Source, size_bytes: int) -> None:
        """As `Sink.add`."""
        path = self._folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with _private(path) as target:
            _copy_bytes(source, target, size_bytes)
            _sync(target)


class _TarSink:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, source: Source, size_bytes: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size_bytes, 0o600
        self._tar.addfile(member, source)


@contextmanager
def _private(path: Path) -> Iterator[IO[bytes]]:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        yield file


def _sync(file: IO[bytes]) -> None:
    file.flush()
    sync_to_medium(file.fileno())


def _copy_bytes(source: Source, target: IO[bytes], size_bytes: int) -> None:
    left = size_bytes
    while left:
        block = source.read(min(left, BLOCK_BYTES))
        if not block:
            raise OSError(f"{left} bytes are missing at the end")
        target.write(block)
        left -= len(block)
