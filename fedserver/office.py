"""The office of a federation: where sites are invited."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from fedserver.addresses import Advertised
from fedserver.enrolment import Membership
from fedserver.enrolment.membership import DEFAULT_INVITATION
from fedstream.join_token import JoinToken
from fedstream.tls import Identity, fingerprint


@dataclass(frozen=True, slots=True)
class Office:
    """Where invitations are made out: beside the members' book, it takes what a token says of the server."""

    membership: Membership
    server: Identity
    advertised: Advertised

    async def invite(self, name: str, valid_for: timedelta | None) -> tuple[str, datetime]:
        """Invite a site; returns the token and when it ends.

        Raises:
            InvalidRequest: the name or the span cannot be used.
        """
        invited = await self.membership.invite(name, valid_for or DEFAULT_INVITATION)
        token = JoinToken(
            token_id=invited.token_id,
            secret=invited.secret,
            fingerprint=fingerprint(self.server.certificate),
            name=name,
            server=self.advertised.server,
            enrolment=self.advertised.enrolment,
        )
        return token.encode(), invited.expires
