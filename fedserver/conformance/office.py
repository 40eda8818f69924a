"""Joining and certificates, as a conformance server plays them: rightly, but for what a scene wants otherwise."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc

from fedserver.conformance.faults import Refused, refuse
from fedserver.conformance.findings import Findings
from fedstream.certificates import (
    CertificateRequest,
    issue_server,
    issue_site,
    make_authority,
    make_key,
    make_request,
    public_key_of,
    read_request,
    to_der,
)
from fedstream.errors import InvalidRequest, TokenUsed, UnknownToken
from fedstream.join_token import JoinToken, make_secret
from fedstream.tls import Identity, fingerprint, server_credentials
from fedstream.v1 import enrolment_pb2, enrolment_pb2_grpc

_LASTING = timedelta(days=30)


class Wrong(enum.Enum):
    """What is wrong with the certificate that joining gives."""

    NAME = "a certificate for another name"
    KEY = "a certificate for another key"
    AUTHORITY = "a certificate of another authority than the one beside it"


@dataclass(slots=True)
class Office:
    """An authority, one invitation, and what came to enrolment. `certificates` are those that were given, PEM.

    `lost_answers` is how many enrolments go well and are not answered, `wrong` what is wrong with what is given, and
    `validity` how long it lasts from now.
    """

    site: str
    findings: Findings
    note: Callable[[str], None]
    lost_answers: int = 0
    wrong: Wrong | None = None
    validity: timedelta = _LASTING
    authority: Identity = field(default_factory=make_authority)
    server: Identity = field(init=False)
    keys: list[str] = field(default_factory=list)
    certificates: list[bytes] = field(default_factory=list)
    renewals: int = 0
    _port: int = 0
    _listening: grpc.aio.Server | None = None
    _invitation: tuple[bytes, bytes] = field(default_factory=make_secret)

    def __post_init__(self) -> None:
        self.server = issue_server(self.authority, [])

    async def open(self) -> None:
        """Listen for those who have no certificate yet."""
        self._listening = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(_Enrolment(self), self._listening)
        self._port = self._listening.add_secure_port("127.0.0.1:0", server_credentials(self.server))
        await self._listening.start()

    async def close(self) -> None:
        """Listen no more."""
        if self._listening is not None:
            await self._listening.stop(0)

    def token(self, members: str, pinned: Identity | None = None) -> str:
        """The invitation, for members at that address; `pinned` has the certificate that it names, if it is another."""
        token_id, secret = self._invitation
        named = fingerprint((pinned or self.server).certificate)
        return JoinToken(token_id, secret, named, self.site, members, f"127.0.0.1:{self._port}").encode()

    def enrol(self, request: enrolment_pb2.EnrolRequest) -> enrolment_pb2.EnrolResponse:
        """Look at a request and give a certificate for it.

        Raises:
            ProtocolError: it is refused.
        """
        token_id, secret = self._invitation
        told = (request.token_id, request.token_secret) == (token_id, secret) and request.client_name == self.site
        if not self.findings.check("R-JOIN-3", told, "Enrol came with another name or secret than the token's"):
            raise UnknownToken("no invitation has this token")
        asked = self._read(request.certificate_request)
        words = f"the request's common name is {asked.name!r}"
        self.findings.check("R-JOIN-3", asked.name == self.site, words)
        if self.keys and asked.key_sha256 != self.keys[0]:
            raise TokenUsed("another key has joined with this token")
        self.keys.append(asked.key_sha256)
        return self._issue(asked)

    def _read(self, der: bytes) -> CertificateRequest:
        try:
            asked = read_request(der)
        except ValueError as error:
            self.findings.check("R-JOIN-3", False, f"the certificate request cannot be used: {error}")
            raise InvalidRequest(str(error), field="certificate_request") from error
        return asked

    def _issue(self, asked: CertificateRequest) -> enrolment_pb2.EnrolResponse:
        name = "another-site" if self.wrong is Wrong.NAME else self.site
        key = read_request(make_request(make_key(), name)).public_key if self.wrong is Wrong.KEY else asked.public_key
        signer = make_authority() if self.wrong is Wrong.AUTHORITY else self.authority
        self.certificates.append(issue_site(signer, name, key, self.validity))
        return enrolment_pb2.EnrolResponse(
            certificate=to_der(self.certificates[-1]), authority=to_der(self.authority.certificate)
        )

    def renew(self, public_key: bytes) -> bytes:
        """The next certificate, PEM."""
        self.renewals += 1
        self.certificates.append(issue_site(self.authority, self.site, public_key, _LASTING))
        return self.certificates[-1]


class _Enrolment(enrolment_pb2_grpc.EnrolmentServiceServicer):
    def __init__(self, office: Office) -> None:
        self._office = office

    async def Enrol(self, request: Any, context: Any) -> enrolment_pb2.EnrolResponse:
        office = self._office
        office.note("client -> Enrol")
        try:
            answer = office.enrol(request)
        except (InvalidRequest, UnknownToken, TokenUsed) as error:
            await refuse(context, Refused(error))
        if office.lost_answers > 0:
            office.lost_answers -= 1
            office.note("server: the answer is lost")
            await refuse(context, Refused())
        return answer


class Certificates(enrolment_pb2_grpc.CertificateServiceServicer):
    """The service of members, who ask for their next certificate."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def RenewCertificate(self, request: Any, context: Any) -> enrolment_pb2.RenewCertificateResponse:
        self._office.note("client -> RenewCertificate")
        shown = shown_certificate(context)
        return enrolment_pb2.RenewCertificateResponse(certificate=to_der(self._office.renew(public_key_of(shown))))


def shown_certificate(context: Any) -> bytes:
    """The certificate, PEM, that a caller showed; empty without one."""
    found = context.auth_context().get("x509_pem_cert") or [b""]
    return bytes(found[0])
