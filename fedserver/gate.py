"""The gate of a federation: authority, members' book, audit log, and the check on every call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from fedserver.addresses import own_addresses
from fedserver.clock import Clock
from fedserver.config import ServerConfig
from fedserver.enrolment import AuditEvent, AuditLog, Membership
from fedserver.enrolment.book import Book
from fedserver.federation import Federation
from fedserver.services.callers import Callers
from fedserver.store import State
from fedserver.store.database import Database
from fedserver.store.facts import fact
from fedserver.store.keys import AUTHORITY_CERTIFICATE, SET_CLOCK, wrong_dates
from fedstream.certificates import facts_of
from fedstream.errors import ProtocolError
from fedstream.tls import Identity

log = structlog.get_logger()

_CLIENT_CA = "authority of sites that need no invitation"


@dataclass(frozen=True, slots=True)
class Gate:
    """What stands between a federation and the network, where its sites have certificates."""

    membership: Membership
    callers: Callers
    authority: bytes
    client_roots: bytes
    """Authorities, PEM, whose certificates the TLS handshake lets in; the check on every call looks closer."""

    @classmethod
    def open(cls, config: ServerConfig, state: State, clock: Clock) -> Gate:
        """The gate of a state directory; its authority is made if need be.

        Raises:
            StateError: the authority's key or certificate is not what it was.
            ValueError: the file of a further authority cannot be read, or there is no certificate in it.
        """
        client_ca = _read_client_ca(config.client_ca) if config.client_ca is not None else None
        _keep_client_ca(state, client_ca)
        return cls._of(state, clock, timedelta(days=config.certificate_days), client_ca)

    @classmethod
    def as_last_served(cls, state: State, clock: Clock) -> Gate:
        """The gate of a state directory for commands where no server runs: it lets in whom the last server let in.

        Raises:
            StateError: the authority's key or certificate is not what it was.
        """
        validity = timedelta(days=ServerConfig.model_fields["certificate_days"].default)
        return cls._of(state, clock, validity, kept_client_ca(state.database))

    @classmethod
    def _of(cls, state: State, clock: Clock, validity: timedelta, client_ca: bytes | None) -> Gate:
        audit = AuditLog(state.folder, clock)
        authority = open_authority(state, audit)
        book = Book(state.database, state.journal)
        membership = Membership(book, authority, audit, clock, validity, client_ca)
        roots = authority.certificate + (client_ca or b"")
        return cls(membership, Callers(membership), authority.certificate, roots)

    def attach(self, federation: Federation) -> None:
        """Let a revocation reach the federation and its open calls."""

        def shut_out(name: str, why: ProtocolError) -> None:
            federation.expel(name, why.message)
            self.callers.end(name, why)

        self.membership.shut_out = shut_out


def _read_client_ca(path: Path) -> bytes:
    try:
        pem = path.read_bytes()
    except OSError as error:
        why = f"cannot be read ({error.strerror or error}); name a file that the user of the server may read"
        raise ValueError(f"--client-ca {path} {why}") from error
    try:
        facts_of(pem)
    except ValueError as error:
        raise ValueError(f"--client-ca {path} holds no certificate; name that of the authority, in PEM") from error
    return pem


def _keep_client_ca(state: State, client_ca: bytes | None) -> None:
    known = (client_ca or b"").decode("latin-1")  # PEM; what stands between certificates may be anything
    if known != (state.fact(_CLIENT_CA) or ""):
        state.remember(_CLIENT_CA, known)


def kept_client_ca(database: Database) -> bytes | None:
    """The further authority, PEM, whose sites the last server that asked for certificates let in without invitation."""
    return (fact(database, _CLIENT_CA) or "").encode("latin-1") or None


def open_authority(state: State, audit: AuditLog) -> Identity:
    """The authority of a state directory, made if need be; that it was made is in the audit log.

    Raises:
        StateError: its key or certificate is not what it was.
    """
    is_new = not (state.folder / AUTHORITY_CERTIFICATE).exists()
    authority = state.authority()
    if is_new:
        audit.note(AuditEvent.AUTHORITY_MADE, authority=facts_of(authority.certificate).fingerprint)
    return authority


def server_identity(state: State, advertise: list[str]) -> Identity:
    """The server's key and certificate. Where the clock was or is wrong, so that no site can trust them, it is said.

    Raises:
        StateError: one of them is gone or not what it was.
    """
    identity = state.identity([*own_addresses(), *advertise])
    if (wrong := wrong_dates(state.authority().certificate, datetime.now(UTC))) is not None:
        log.error("no site can trust this server now", because=wrong, hint=SET_CLOCK)
    return identity
