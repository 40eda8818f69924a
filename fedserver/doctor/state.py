"""The state directory, its database and its certificate. Nothing is written."""

from __future__ import annotations

import stat
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from fedserver.config import ServerConfig
from fedserver.store import StateError, StateReader
from fedserver.store.database import MIGRATIONS
from fedserver.store.errors import EarlierVersion
from fedserver.store.folder import is_in_use, is_state_directory, read_contact, require_database
from fedserver.store.keys import (
    AUTHORITY_CERTIFICATE,
    CERTIFICATE,
    IDENTITY_FILES,
    KEY,
    SET_CLOCK,
    is_changed,
    wrong_dates,
)
from fedstream.checkup.certificate import judge_validity
from fedstream.checkup.machine import judge_folder
from fedstream.checkup.runner import Result, failed, ok, warning
from fedstream.tls import fingerprint

_RENEWAL = "Restart the server: it makes the next one by itself, and sites do not notice"


def lock(config: ServerConfig) -> Result:
    """Whether a server is at it."""
    try:
        in_use, contact = is_in_use(config.state), read_contact(config.state)
    except StateError as error:
        return failed(str(error), "")
    if not config.state.exists():
        return ok(f"{config.state} is not there yet; the server makes it")
    if in_use:
        return ok(f"a server runs on {config.state} (pid {contact.get('pid')}, at {contact.get('address')})")
    return ok(f"no server runs on {config.state}")


def disk(config: ServerConfig) -> Result:
    """It can be written, and there is the space below which no round is offered."""
    return judge_folder(config.state, config.min_free_bytes, 2 * config.min_free_bytes)


def out_folder(config: ServerConfig) -> Result:
    """Report and models can be written."""
    return judge_folder(config.out, config.min_free_bytes // 4, config.min_free_bytes // 4)


def database(config: ServerConfig) -> Result:
    """The database opens, has all its rows, and is of this program's version."""
    try:
        require_database(config.state)
        if not is_state_directory(config.state):
            return ok("none yet; the federation begins with the first start")
        with closing(StateReader(config.state)) as reader:
            rounds = reader.database.query("SELECT count(*) FROM rounds")[0][0]
            interrupted = reader.database.interrupted
    except EarlierVersion:
        return warning("of an earlier version", "The first start converts it; before, make a backup with that version")
    except StateError as error:
        return failed(str(error), "`fedserver verify` says what else is damaged")
    if interrupted:
        return warning(interrupted, "The next start takes up what came before; `fedserver verify` checks the rest")
    return ok(f"opens, version {len(MIGRATIONS)}, {rounds} rounds")


def certificate(config: ServerConfig) -> Result:
    """The certificate has not ended, is what it was, and only its owner can read the key."""
    path, key = config.state / CERTIFICATE, config.state / KEY
    if not path.exists():
        return ok("none yet; made at the first start")
    if not key.exists():
        return failed(f"{key} is gone", "Restore a backup")
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        return warning(f"{key} can be read by others (mode {mode:o})", f"Run: chmod 600 {key}")
    if changed := _changed(config):
        return failed(f"{changed[0]} is not what it was", "Restore a backup: sites know this server by it")
    contents, authority, now = path.read_bytes(), config.state / AUTHORITY_CERTIFICATE, datetime.now(UTC)
    if authority.exists() and (wrong := wrong_dates(authority.read_bytes(), now)) is not None:
        return failed(wrong, f"{SET_CLOCK[0].upper()}{SET_CLOCK[1:]}")
    result = judge_validity(contents, now, _RENEWAL, if_too_early=_RENEWAL)
    return Result(result.verdict, f"{result.found}, {fingerprint(contents)}", result.advice)


def _changed(config: ServerConfig) -> list[Path]:
    """Keys and certificates, the authority's too, that are not what was remembered of them."""
    if not is_state_directory(config.state):
        return []
    try:
        with closing(StateReader(config.state)) as reader:
            files = [config.state / name for name in IDENTITY_FILES]
            return [path for path in files if is_changed(path, reader.database)]
    except StateError:  # what is said of the database
        return []
