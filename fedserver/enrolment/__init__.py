"""Who belongs to the federation: invitations, certificates, and the record of what was granted and refused."""

from fedserver.enrolment.audit import AuditEvent, AuditLog
from fedserver.enrolment.membership import Invited, Membership, Revoked

__all__ = ["AuditEvent", "AuditLog", "Invited", "Membership", "Revoked"]
