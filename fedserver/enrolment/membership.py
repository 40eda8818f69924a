"""What may become of a site: invited, enrolled, renewed, revoked; and whose a certificate is."""

from __future__ import annotations

import asyncio
import functools
import hmac
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from fedserver.clock import Clock
from fedserver.enrolment.attempts import MOST_PER_INVITATION, Attempts
from fedserver.enrolment.audit import AuditEvent, AuditLog
from fedserver.enrolment.book import Book
from fedserver.store.members import Invitation, InvitationState, IssuedCertificate, Site, SiteState
from fedstream import limits
from fedstream.certificates import (
    CertificateRequest,
    facts_of,
    is_issued_by,
    issue_site,
    public_key_of,
    read_request,
)
from fedstream.errors import (
    InvalidRequest,
    NameMismatch,
    PermissionDenied,
    ProtocolError,
    TokenExpired,
    TokenRevoked,
    TokenUsed,
    Unauthenticated,
    UnknownSite,
    UnknownToken,
)
from fedstream.join_token import hash_of, make_secret
from fedstream.tls import SERVER_NAME, Identity, fingerprint

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_INVITATION = timedelta(days=366)
DEFAULT_INVITATION = timedelta(hours=72)

_NOBODY = hash_of(b"")
"""Compared with where there is no such invitation, so that an answer takes as long as where there is one."""


def _to_its_end(change: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Go on with a change when its caller goes away: once durable, it must become true in memory too."""

    @functools.wraps(change)
    async def shielded(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.shield(asyncio.create_task(change(*args, **kwargs)))

    return shielded


@dataclass(frozen=True, slots=True)
class Invited:
    """A new invitation. This is the only place where its secret is."""

    token_id: bytes
    secret: bytes = field(repr=False)
    expires: datetime


@dataclass(frozen=True, slots=True)
class Revoked:
    """How much was taken back."""

    certificates: int
    invitations: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A site's wish to join: what its token says, and its certificate request. `peer` is the address it comes from."""

    name: str
    token_id: bytes
    secret: bytes = field(repr=False)
    request: bytes
    peer: str


class Membership:
    """Used from the event loop. What it grants is in the audit log and durable before anybody is told.

    Args:
        book: what is known of members.
        authority: signs certificates.
        audit: where it is written down.
        clock: for everything that ends.
        validity: of a site's certificate.
        client_ca: PEM of a further authority, whose certificates sites may bring themselves.
    """

    def __init__(
        self,
        book: Book,
        authority: Identity,
        audit: AuditLog,
        clock: Clock,
        validity: timedelta,
        client_ca: bytes | None = None,
    ) -> None:
        self.book, self.audit = book, audit
        self._authority, self._clock, self._validity, self._client_ca = authority, clock, validity, client_ca
        self._attempts = Attempts(clock.monotonic)
        self._wrong: Counter[bytes] = Counter()
        # Guards every change: each looks at the book first and waits for the disk in between.
        self._changing = asyncio.Lock()
        self.shut_out: Callable[[str, ProtocolError], None] = lambda _name, _why: None
        """Is told whose certificates no longer count, and why: the site's open calls are to end."""

    @property
    def takes_own_certificates(self) -> bool:
        """Whether sites may bring certificates of a further authority, and need no invitation."""
        return self._client_ca is not None

    # Invitations.

    @_to_its_end
    async def invite(self, name: str, valid_for: timedelta = DEFAULT_INVITATION) -> Invited:
        """Invite a site. Earlier invitations of that name that were not used are taken back.

        Raises:
            InvalidRequest: the name or the span cannot be used.
        """
        if not limits.is_client_name(name) or name == SERVER_NAME:
            message = "a name has 1 to 64 characters of a-z A-Z 0-9 . _ - and starts with a letter or digit"
            named = f"{name[:80]!r} is no name for a site: {message}"
            raise InvalidRequest(f"{named}; {SERVER_NAME} is the server's own", field="client_name")
        if not timedelta() < valid_for <= LONGEST_INVITATION:
            raise InvalidRequest("an invitation is valid for more than 0 and at most 366 days", field="valid_for")
        token_id, secret = make_secret()
        expires = datetime.fromtimestamp(self._now, UTC) + valid_for
        invitation = Invitation(token_id, name, hash_of(secret), self._now, int(expires.timestamp()))
        async with self._changing:
            await self._note(
                AuditEvent.INVITED, site=name, invitation=token_id.hex(), expires=expires.isoformat(timespec="seconds")
            )
            known = self.book.sites.get(name)
            is_member = known is not None and known.state is SiteState.ENROLLED
            site = known if known is not None and is_member else Site(name, SiteState.INVITED, self._now)
            await self.book.keep(site, *map(_taken_back, self.book.open_invitations(name)), invitation)
        return Invited(token_id, secret, expires)

    # Enrolment.

    @_to_its_end
    async def enrol(self, asked: Asked) -> bytes:
        """Give a site its certificate, PEM; the same again to the key that has it already.

        Raises:
            LimitExceeded: too many wrong tokens came from this address.
            InvalidRequest: the certificate request cannot be used.
            UnknownToken, TokenExpired, TokenUsed, TokenRevoked, NameMismatch: the token does not let it in.
        """
        try:
            async with self._changing:
                return await self._enrol(asked)
        except ProtocolError as error:
            name = asked.name if limits.is_client_name(asked.name) else ""
            facts = {"site": name, "reason": error.reason, "said": error.message, "peer": asked.peer}
            await asyncio.to_thread(self.audit.note_refusal, AuditEvent.ENROLMENT_REFUSED, **facts)
            raise

    async def _enrol(self, asked: Asked) -> bytes:
        self._attempts.require(asked.peer)
        invitation = await self._invitation(asked)
        try:
            request = read_request(asked.request)
        except ValueError as error:
            raise InvalidRequest(
                f"the certificate request cannot be used: {error}", field="certificate_request"
            ) from error
        if not asked.name == request.name == invitation.name:
            raise NameMismatch(
                "this token is for a site of another name; use the name it was made for", name=asked.name
            )
        if invitation.state is InvitationState.USED:
            return await self._repeat(invitation, request, asked.peer)
        if invitation.state is InvitationState.REVOKED:
            raise TokenRevoked("this invitation was taken back; ask the coordinator for a new one")
        if invitation.expires <= self._now:
            raise TokenExpired("this invitation's time is over; ask the coordinator for a new one")
        return await self._admit(invitation, request, asked.peer)

    async def _invitation(self, asked: Asked) -> Invitation:
        found = self.book.invitations.get(asked.token_id)
        expected = found.secret_hash if found is not None else _NOBODY
        if hmac.compare_digest(hash_of(asked.secret), expected) and found is not None:
            return found
        self._attempts.note_wrong(asked.peer)
        if found is not None and found.state is InvitationState.OPEN:
            self._wrong[found.token_id] += 1
            if self._wrong[found.token_id] >= MOST_PER_INVITATION:
                why = "it was tried with wrong secrets"
                facts = {"site": found.name, "invitation": found.token_id.hex(), "reason": why}
                await self._note(AuditEvent.INVITATION_CLOSED, **facts)
                await self.book.keep(_taken_back(found))
        raise UnknownToken("no invitation has this token; copy it again, whole, or ask the coordinator for a new one")

    async def _repeat(self, invitation: Invitation, request: CertificateRequest, peer: str) -> bytes:
        """The answer again to the key that had it: it may have been lost on its way."""
        of_key = [one for one in self.book.live_certificates(invitation.name) if one.key_sha256 == request.key_sha256]
        if invitation.key_sha256 != request.key_sha256:
            raise TokenUsed(
                "another key has joined with this token. If that was not you, with another --identity, tell the "
                "coordinator at once: somebody else has this site's name; else ask for a new token"
            )
        if not of_key:
            raise TokenRevoked("the certificate that this token gave was revoked; ask the coordinator for a new token")
        facts = {"site": invitation.name, "peer": peer}
        await asyncio.to_thread(self.audit.note_repeat, AuditEvent.ENROLMENT_REPEATED, **facts)
        return of_key[-1].certificate.encode()

    async def _admit(self, invitation: Invitation, request: CertificateRequest, peer: str) -> bytes:
        name, issued = invitation.name, self._issue(invitation.name, request.public_key)
        earlier = [replace(one, is_revoked=True) for one in self.book.live_certificates(name)]
        facts = {"site": name, "invitation": invitation.token_id.hex(), "certificate": issued.fingerprint}
        await self._note(AuditEvent.ENROLLED, **facts, expires=_shown(issued.expires), peer=peer)
        used = replace(invitation, state=InvitationState.USED, key_sha256=request.key_sha256)
        await self.book.keep(Site(name, SiteState.ENROLLED, self._now), used, *earlier, issued)
        if earlier:
            self.shut_out(name, PermissionDenied("this site has joined again with another key"))
        return issued.certificate.encode()

    # Members.

    def identify(self, certificate: bytes) -> str:
        """The name of the site with this certificate (PEM), which the TLS handshake has found sound.

        Raises:
            Unauthenticated: it is none that counts here.
            PermissionDenied: it has been revoked.
        """
        issued = self.book.certificates.get(fingerprint(certificate))
        if issued is None:
            return self._identify_foreign(certificate)
        if issued.is_revoked:
            raise PermissionDenied("this site's certificate has been revoked; ask the coordinator")
        if issued.expires <= self._now:
            raise Unauthenticated("this site's certificate has expired; ask the coordinator for a new invitation")
        return issued.name

    def _identify_foreign(self, certificate: bytes) -> str:
        """Of a certificate that the site brought itself. It never stands for a site that was invited."""
        if self._client_ca is None or is_issued_by(certificate, self._authority.certificate):
            raise Unauthenticated("this server does not know this certificate; ask the coordinator for an invitation")
        facts = facts_of(certificate)
        if not limits.is_client_name(facts.name):
            raise Unauthenticated("the common name of this certificate cannot name a site")
        if facts.expires.timestamp() <= self._now:
            raise Unauthenticated("this site's certificate has expired; get a new one from its authority")
        known = self.book.sites.get(facts.name)
        if known is not None:
            why = "has been revoked" if known.state is SiteState.REVOKED else "belongs to a site that was invited"
            raise PermissionDenied(f"the name {facts.name} {why}; ask the coordinator")
        return facts.name

    @_to_its_end
    async def renew(self, certificate: bytes) -> bytes:
        """The next certificate, PEM, for whoever has this one; the same again while it is new.

        Raises:
            Unauthenticated: it is none of this federation's.
            PermissionDenied: it has been revoked.
        """
        async with self._changing:
            name, mark = self.identify(certificate), fingerprint(certificate)
            if mark not in self.book.certificates:
                raise Unauthenticated("this certificate is of another authority, which renews it")
            facts = facts_of(certificate)
            newest = [one for one in self.book.live_certificates(name) if one.key_sha256 == facts.key_sha256][-1]
            if newest.expires - self._now > (newest.expires - newest.begins) * 2 / 3:
                return newest.certificate.encode()
            issued = self._issue(name, public_key_of(certificate))
            await self._note(
                AuditEvent.RENEWED, site=name, certificate=issued.fingerprint, expires=_shown(issued.expires)
            )
            await self.book.keep(issued)
            return issued.certificate.encode()

    @_to_its_end
    async def revoke(self, name: str) -> Revoked:
        """Take back a site's certificates and invitations, and have its open calls ended. Idempotent.

        Raises:
            UnknownSite: nobody of that name was invited.
        """
        async with self._changing:
            if name not in self.book.sites and not (self.takes_own_certificates and limits.is_client_name(name)):
                raise UnknownSite(f"no site called {limits.clip_reason(name, 64)} was invited", name=name)
            certificates, invitations = self.book.live_certificates(name), self.book.open_invitations(name)
            revoked = Revoked(len(certificates), len(invitations))
            counts = {"certificates": revoked.certificates, "invitations": revoked.invitations}
            await self._note(AuditEvent.REVOKED, site=name, **counts)
            site = Site(name, SiteState.REVOKED, self._now)
            ended = [replace(one, is_revoked=True) for one in certificates]
            await self.book.keep(site, *ended, *map(_taken_back, invitations))
            self.shut_out(name, PermissionDenied("this site has been revoked; ask the coordinator"))
            return revoked

    def _issue(self, name: str, public_key: bytes) -> IssuedCertificate:
        certificate = issue_site(self._authority, name, public_key, self._validity)
        facts = facts_of(certificate)
        begins, expires = int(facts.begins.timestamp()), int(facts.expires.timestamp())
        return IssuedCertificate(facts.fingerprint, name, facts.key_sha256, certificate.decode(), begins, expires)

    async def _note(self, event: AuditEvent, **facts: object) -> None:
        await asyncio.to_thread(self.audit.note, event, **facts)

    @property
    def _now(self) -> int:
        return int(self._clock.wall())


def _taken_back(invitation: Invitation) -> Invitation:
    return replace(invitation, state=InvitationState.REVOKED)


def _shown(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat()
