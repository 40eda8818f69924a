"""Members as rows: the sites that were invited, their invitations, and the certificates they were given."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from fedserver.store.database import Database
from fedserver.store.journal import Statement


class SiteState(enum.Enum):
    """Where a site stands. Legal transitions:

    (new) -> INVITED -> ENROLLED -> REVOKED
    (new), INVITED -> REVOKED
    REVOKED -> INVITED
    """

    INVITED = "invited"
    ENROLLED = "enrolled"
    REVOKED = "revoked"


class InvitationState(enum.Enum):
    """Where an invitation stands: OPEN -> USED | REVOKED. That its time is over, its `expires` says."""

    OPEN = "open"
    USED = "used"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Site:
    """A site that was invited or kept out; `since` in unix seconds."""

    name: str
    state: SiteState
    since: int


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation of one site; times in unix seconds. `key_sha256` is of the key that used it, empty before."""

    token_id: bytes
    name: str
    secret_hash: bytes = field(repr=False)
    created: int
    expires: int
    state: InvitationState = InvitationState.OPEN
    key_sha256: str = ""


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate that was given to a site; times in unix seconds, `certificate` in PEM."""

    fingerprint: str
    name: str
    key_sha256: str
    certificate: str = field(repr=False)
    begins: int
    expires: int
    is_revoked: bool = False


Record = Site | Invitation | IssuedCertificate


def keeping(record: Record) -> Statement:
    """What makes a record durable, whether or not there is an earlier one of it."""
    match record:
        case Site():
            values: tuple[object, ...] = (record.name, record.state.value, record.since)
            return Statement("INSERT OR REPLACE INTO sites VALUES (?, ?, ?)", values)
        case Invitation():
            values = (record.token_id, record.name, record.secret_hash, record.created, record.expires)
            values += (record.state.value, record.key_sha256)
            return Statement("INSERT OR REPLACE INTO invitations VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        case IssuedCertificate():
            values = (record.fingerprint, record.name, record.key_sha256, record.certificate, record.begins)
            values += (record.expires, int(record.is_revoked))
            return Statement("INSERT OR REPLACE INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def kept_sites(database: Database) -> list[Site]:
    """All sites, by name."""
    rows = database.query("SELECT name, state, since FROM sites ORDER BY name")
    return [Site(name, SiteState(state), since) for name, state, since in rows]


def kept_invitations(database: Database) -> list[Invitation]:
    """All invitations, oldest first."""
    columns = "token_id, name, secret_hash, created, expires, state, key_sha256"
    rows = database.query(f"SELECT {columns} FROM invitations ORDER BY created")  # noqa: S608 - a constant
    return [
        Invitation(token_id, name, secret_hash, created, expires, InvitationState(state), key_sha256)
        for token_id, name, secret_hash, created, expires, state, key_sha256 in rows
    ]


def kept_certificates(database: Database) -> list[IssuedCertificate]:
    """All certificates, oldest first."""
    columns = "fingerprint, name, key_sha256, certificate, begins, expires, is_revoked"
    rows = database.query(f"SELECT {columns} FROM certificates ORDER BY begins, expires")  # noqa: S608 - a constant
    return [
        IssuedCertificate(mark, name, key_sha256, certificate, begins, expires, bool(is_revoked))
        for mark, name, key_sha256, certificate, begins, expires, is_revoked in rows
    ]
