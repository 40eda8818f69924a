"""The members' book: sites, invitations and certificates, in memory as they are in the database."""

from __future__ import annotations

from fedserver.store.database import Database
from fedserver.store.journal import Journal
from fedserver.store.members import (
    Invitation,
    InvitationState,
    IssuedCertificate,
    Record,
    Site,
    keeping,
    kept_certificates,
    kept_invitations,
    kept_sites,
)


class Book:
    """Read whole at the start, since every call asks it: a site has a row or a few. Used from the event loop.

    Args:
        database: what an earlier process has kept.
        journal: where changes go.
    """

    def __init__(self, database: Database, journal: Journal) -> None:
        self._journal = journal
        self.sites: dict[str, Site] = {}
        self.invitations: dict[bytes, Invitation] = {}
        self.certificates: dict[str, IssuedCertificate] = {}
        known: list[Record] = [*kept_sites(database), *kept_invitations(database), *kept_certificates(database)]
        for record in known:
            self._take(record)

    async def keep(self, *records: Record) -> None:
        """Make records durable, all or none, and then true.

        Raises:
            sqlite3.Error: the disk refuses; nothing has changed.
        """
        await self._journal.write(*(keeping(record) for record in records))
        for record in records:
            self._take(record)

    def open_invitations(self, name: str) -> list[Invitation]:
        """A site's invitations that were neither used nor taken back."""
        found = self.invitations.values()
        return [one for one in found if one.name == name and one.state is InvitationState.OPEN]

    def live_certificates(self, name: str) -> list[IssuedCertificate]:
        """A site's certificates that were not revoked, oldest first."""
        return [one for one in self.certificates.values() if one.name == name and not one.is_revoked]

    def _take(self, record: Record) -> None:
        match record:
            case Site():
                self.sites[record.name] = record
            case Invitation():
                self.invitations[record.token_id] = record
            case IssuedCertificate():
                self.certificates[record.fingerprint] = record
