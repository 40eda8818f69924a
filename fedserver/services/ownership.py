"""Whose an upload is: for anybody else it is as if there were none."""

from __future__ import annotations

from fedserver.desk import Desk
from fedserver.federation import Federation
from fedserver.services.callers import CALLER
from fedserver.store.rounds import part_of_upload
from fedstream.errors import UnknownUpload


async def require_own(federation: Federation, desk: Desk, upload_id: str) -> None:
    """Check that an upload is the caller's, where callers have certificates. One that is unknown passes here.

    Raises:
        UnknownUpload: it is another site's.
    """
    caller = CALLER.get()
    if caller is None:
        return
    await desk.opened()
    owner = _owner_of(federation, upload_id)
    if owner is not None and owner != caller.name:
        waits = "no upload of that id is expected; wait for the next offer"  # as of an id that nobody has
        await caller.deny(UnknownUpload(waits))


def _owner_of(federation: Federation, upload_id: str) -> str | None:
    """The site whose upload it is, of the round at work or of one that is over."""
    if federation.round is not None and (part := federation.round.find_upload(upload_id)) is not None:
        return part.client
    known = part_of_upload(federation.state.database, upload_id)
    return known[1].client if known is not None else None
