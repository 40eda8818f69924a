"""A state directory made of a backup, after every byte of it was checked."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedserver.store.backup import (
    CONTENTS,
    FORMAT,
    BackupError,
    Contents,
    FolderSink,
    HashingSource,
    Source,
    WrongBackup,
    named_files,
)
from fedserver.store.database import Database
from fedserver.store.errors import DamagedFile, StateError
from fedserver.store.folder import ADDRESSES, AUDIT_LOG, DATABASE, MODELS, UPDATES
from fedserver.store.keys import IDENTITY_FILES
from fedstream.files import TEMPORARY_SUFFIX, RealFileSystem, publish

_SINGLE_FILES = "|".join(re.escape(name) for name in (DATABASE, *IDENTITY_FILES, AUDIT_LOG, ADDRESSES))
_NAME = re.compile(
    rf"{_SINGLE_FILES}|{MODELS}/[0-9a-f]{{64}}\.safetensors"
    rf"|{UPDATES}/[0-9a-f]{{32}}\.safetensors((\.encoded)?{re.escape(TEMPORARY_SUFFIX)})?"
)
"""What a backup may hold. Nothing else is ever written."""

_MAX_CONTENTS_BYTES = 64 << 20


def restore(backup: Path, state: Path) -> Contents:
    """Make a state directory of a backup.

    Raises:
        WrongBackup: `state` is not empty, or the backup is incomplete or damaged.
        BackupError: `state` cannot be made. Nothing is left of the try.
    """
    state = state.resolve()  # of `.` there is no name
    # A folder that is a file system of its own, such as a container's volume, can be filled and not replaced.
    is_mounted = state.is_mount()
    unfinished = (state if is_mounted else state.parent) / f"{state.name}{TEMPORARY_SUFFIX}"
    if unfinished.exists():
        raise BackupError(f"{unfinished} is there: another restore is at work, or one broke off; remove it first")
    if state.exists() and (not state.is_dir() or any(state.iterdir())):
        raise WrongBackup(f"{state} is not empty, and nothing is overwritten: give another --state, or move it away")
    try:
        unfinished.mkdir(mode=0o700, parents=True)
        contents = _unpack(backup, unfinished)
        _check_restored(unfinished)
        for folder in {path.parent for path in unfinished.rglob("*")}:
            RealFileSystem().sync_folder(folder)
        if is_mounted:
            _move_up(unfinished)
        else:
            if state.exists():
                state.rmdir()
            publish(RealFileSystem(), unfinished, state)
    except (EOFError, tarfile.TarError) as error:
        raise WrongBackup(f"{backup} cannot be restored ({error})") from error
    except OSError as error:
        kind = BackupError if backup.exists() else WrongBackup
        raise kind(f"{backup} cannot be restored ({error})") from error
    except (StateError, DamagedFile) as error:
        raise WrongBackup(f"{backup} is damaged: {str(error).replace(str(unfinished), str(backup))}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return contents


def _move_up(folder: Path) -> None:
    """Move what is in a folder to the one around it; the database last, without which that is no state directory."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == DATABASE):
        path.rename(folder.parent / path.name)
    RealFileSystem().sync_folder(folder.parent)


def _unpack(backup: Path, folder: Path) -> Contents:
    files: dict[str, tuple[str, int]] = {}
    stated: Mapping[str, Any] | None = None
    for name, source, size_bytes in _members(backup):
        if name == CONTENTS:
            stated = _read_contents(backup, source)
            continue
        if not _NAME.fullmatch(name) or name in files:
            raise WrongBackup(f"{backup} holds {name!r}, which no backup has: `fedserver backup` did not make it")
        hashing = HashingSource(source)
        FolderSink(folder).add(name, hashing, size_bytes)
        files[name] = (hashing.sha256.hexdigest(), size_bytes)
    if stated is None:
        raise WrongBackup(f"{backup} has no {CONTENTS}: it is incomplete, or no backup")
    for name in sorted(stated.keys() | files.keys()):
        if name not in files or stated.get(name) != [*files[name]]:
            problem = "is missing" if name not in files else "is not what was backed up"
            raise WrongBackup(f"{backup} is damaged: {name} {problem}")
    return Contents(files)


def _read_contents(backup: Path, source: Source) -> Mapping[str, Any]:
    try:
        fields = json.loads(source.read(_MAX_CONTENTS_BYTES))
        if fields["format"] != FORMAT:
            raise WrongBackup(f"{backup} is of format {fields['format']!r}, this program knows {FORMAT!r}")
        return dict(fields["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise WrongBackup(f"{backup} is damaged: {CONTENTS} cannot be read ({error})") from error


def _members(backup: Path) -> Iterator[tuple[str, Source, int]]:
    """Name, bytes and size of everything in a backup. Links and devices in a tar file are refused."""
    if backup.is_dir():
        for path in sorted(path for path in backup.rglob("*") if not path.is_dir()):
            with path.open("rb") as file:
                yield str(path.relative_to(backup)), file, path.stat().st_size
        return
    with tarfile.open(backup) as tar:
        for member in tar:
            source = tar.extractfile(member) if member.isreg() else None
            if source is None:
                raise WrongBackup(f"{backup} holds {member.name!r}, which is no file")
            yield member.name, source, member.size


def _check_restored(folder: Path) -> None:
    """See that the database can be used, and that every file its rows name is there and right."""
    if not (folder / DATABASE).exists():
        raise StateError(f"{folder / DATABASE} is missing")
    database = Database(folder / DATABASE)
    try:
        for _ in named_files(database, folder):
            pass
    finally:
        database.close()
