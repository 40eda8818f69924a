"""The EnrolmentService, for those who have no certificate yet, and the CertificateService, for those who have one."""

from __future__ import annotations

from fedserver.enrolment import Membership
from fedserver.enrolment.attempts import address_of
from fedserver.enrolment.membership import Asked
from fedserver.federation import Federation
from fedserver.services.callers import CALLER
from fedserver.services.calls import Context, translates_errors
from fedstream.certificates import to_der
from fedstream.v1 import enrolment_pb2, enrolment_pb2_grpc


class EnrolmentServicer(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """Takes tokens, gives certificates.

    Args:
        federation: whose disk it is.
        membership: decides.
        authority: the certificate, PEM, of the federation's authority.
    """

    def __init__(self, federation: Federation, membership: Membership, authority: bytes) -> None:
        self.federation = federation
        self._membership, self._authority = membership, authority

    @translates_errors
    async def Enrol(self, request: enrolment_pb2.EnrolRequest, context: Context) -> enrolment_pb2.EnrolResponse:
        """Exchanges a token for a certificate."""
        asked = Asked(
            name=request.client_name,
            token_id=request.token_id,
            secret=request.token_secret,
            request=request.certificate_request,
            peer=address_of(context.peer()),
        )
        certificate = await self._membership.enrol(asked)
        return enrolment_pb2.EnrolResponse(certificate=to_der(certificate), authority=to_der(self._authority))


class CertificateServicer(enrolment_pb2_grpc.CertificateServiceServicer):
    """Gives members their next certificate.

    Args:
        federation: whose disk it is.
        membership: decides.
    """

    def __init__(self, federation: Federation, membership: Membership) -> None:
        self.federation = federation
        self._membership = membership

    @translates_errors
    async def RenewCertificate(
        self, _request: enrolment_pb2.RenewCertificateRequest, _context: Context
    ) -> enrolment_pb2.RenewCertificateResponse:
        """The next certificate for the caller's name and key."""
        caller = CALLER.get()
        assert caller is not None, "this service is served to members only"
        return enrolment_pb2.RenewCertificateResponse(
            certificate=to_der(await self._membership.renew(caller.certificate))
        )
