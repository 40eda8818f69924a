"""Renewing the site's certificate, while a client runs: before a third of its validity is left, without anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from fedclient import requests
from fedclient.calls import QUICK_CALL_SECONDS, plain_words, translated
from fedclient.connection import Connection
from fedclient.exit_codes import Stop
from fedclient.identity import IdentityFolder, check_answer
from fedstream.certificates import facts_of, to_pem
from fedstream.errors import FedstreamError, ProtocolError

log = structlog.get_logger()

_LOOK_SECONDS = 3_600.0
"""A third of 90 days is 30 days, so a look each hour leaves hundreds of tries to a server that is away."""

_LOOK_SHARE = 1 / 12
"""Part of a shorter validity between two looks: four fall into its last third."""

_LEAST_LOOK_SECONDS = 60.0
"""A renewal makes the connection anew, which cuts what it carries: not all the time, however short the validity."""


async def renew_if_due(folder: IdentityFolder, connection: Connection) -> bool:
    """Get the next certificate if it is time; whether there is one. After a failure the next look tries again."""
    credentials = folder.credentials()
    if not credentials.facts.is_due(datetime.now(UTC)):
        return False
    try:
        with translated():
            call = connection.certificates.RenewCertificate
            answer = await call(requests.renew_certificate(), timeout=QUICK_CALL_SECONDS)
        certificate = to_pem(answer.certificate)
        check_answer(credentials.facts.name, credentials.identity.key, certificate, credentials.authority)
        await asyncio.to_thread(folder.keep_certificate, certificate)
    except (FedstreamError, OSError, ValueError) as error:
        words = error.message if isinstance(error, ProtocolError) else plain_words(error)
        log.warning("the certificate could not be renewed", because=words, expires=str(credentials.facts.expires))
        return False
    log.info("certificate renewed", expires=str(facts_of(certificate).expires))
    return facts_of(certificate).fingerprint != credentials.facts.fingerprint


async def keep_renewed(
    folder: IdentityFolder,
    connection: Connection,
    renewed: Callable[[], Awaitable[None]],
    look_seconds: float | None = None,
) -> None:
    """Look again and again. Never returns.

    Args:
        folder: where the certificate is.
        connection: to the server, open.
        renewed: is called when there is a new certificate, so that the connection is made anew with it.
        look_seconds: between two looks; by default as the certificate asks for.
    """
    while True:
        await asyncio.sleep(_seconds_to_next_look(folder) if look_seconds is None else look_seconds)
        try:
            if await renew_if_due(folder, connection):
                await renewed()
        except Stop as stop:  # a look that failed, as at a file that is being copied, is no reason never to look again
            log.warning("the certificate could not be looked at", because=stop.message)


def _seconds_to_next_look(folder: IdentityFolder) -> float:
    try:
        facts = folder.credentials().facts
    except Stop:  # the next look says so, and soon: how long the certificate has is not known
        return _LEAST_LOOK_SECONDS
    validity = (facts.expires - facts.begins).total_seconds()
    return max(_LEAST_LOOK_SECONDS, min(_LOOK_SECONDS, validity * _LOOK_SHARE))
