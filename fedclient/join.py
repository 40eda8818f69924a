"""`fedclient join`: from a token to a certificate.

KEY made and kept --> SERVER checked by the token's fingerprint --> ENROL with token and request --> certificate KEPT

It may be cut anywhere and done again with the same token: the key is kept before it is used, and the server gives the
same key the same certificate.
"""

from __future__ import annotations

import asyncio

import grpc

from fedclient import requests
from fedclient.calls import QUICK_CALL_SECONDS, Patience, plain_words, translated, until_done
from fedclient.exit_codes import ExitCode, Stop
from fedclient.identity import IdentityFolder, Membership, check_answer
from fedclient.proxies import proxy_hint
from fedstream import tls
from fedstream.certificates import facts_of, to_pem
from fedstream.errors import LimitExceeded, ProtocolError, TransportError
from fedstream.join_token import PREFIX, JoinToken
from fedstream.tls import shown_address, split_address
from fedstream.v1 import enrolment_pb2, enrolment_pb2_grpc

_PATIENCE = Patience(give_up_after_seconds=30.0)
_ANSWER_SECONDS = 10.0


def read_token(text: str) -> JoinToken:
    """The token that was given, alone or in the whole of what `fedserver invite` printed.

    Raises:
        Stop: with `BAD_CONFIGURATION`, it is none, or there are several in the text.
    """
    try:
        return JoinToken.decode(_token_in(text))
    except ValueError as error:
        raise Stop(ExitCode.BAD_CONFIGURATION, f"{error}") from error


def _token_in(text: str) -> str:
    # A text that begins with a token is nothing else: a mail program may have broken it into several words.
    found = {word for word in text.split() if word.startswith(PREFIX)}
    if not found or text.lstrip().startswith(PREFIX):
        return text
    if len(found) > 1:
        raise ValueError(f"there are {len(found)} join tokens in this text: give the one that is for this site")
    return found.pop()


def places(token: JoinToken, server: str | None, enrolment: str | None) -> tuple[str, str]:
    """Where the server is and where to join: as the token says, but for what the operator says.

    Raises:
        Stop: with `BAD_CONFIGURATION`, an address is none.
    """
    try:
        if server is not None and enrolment is None:
            enrolment = shown_address(split_address(server)[0], split_address(token.enrolment)[1])
        for address in (server, enrolment):
            if address is not None:
                split_address(address)
    except ValueError as error:
        raise Stop(ExitCode.BAD_CONFIGURATION, str(error)) from error
    server, enrolment = server or token.server, enrolment or token.enrolment
    if server == enrolment:  # it would join, and never reach the server
        message = f"{server} cannot be both the server and where sites join; the token says {token.server} for the "
        message += f"server, and {token.enrolment} for joining (--enrolment)"
        raise Stop(ExitCode.BAD_CONFIGURATION, message)
    return server, enrolment


async def join(
    token: JoinToken, server: str, enrolment: str, folder: IdentityFolder, patience: Patience = _PATIENCE
) -> str:
    """Join a federation; returns what to say to the operator.

    Raises:
        Stop: with the exit code and what to do.
    """
    _require_room(folder, Membership(token.name, server))
    if server != token.server:
        await _require_somebody(server, token)
    try:
        key = folder.key()
    except OSError as error:
        advice = "Name a folder that this user may write to with --identity. Nothing was sent: the token still works"
        raise Stop(ExitCode.BAD_CONFIGURATION, f"{_not_kept(folder, error)}. {advice}") from error
    try:
        answer = await _until_answered(enrolment, token, requests.enrol(token, key), patience)
        certificate, authority = to_pem(answer.certificate), to_pem(answer.authority)
        check_answer(token.name, key, certificate, authority)
        await asyncio.to_thread(folder.keep, Membership(token.name, server), certificate, authority)
    except OSError as error:
        # In another folder there would be another key, and the server knows this one by now.
        advice = "Mend that, and join again with the same token and the same --identity"
        raise Stop(ExitCode.BAD_CONFIGURATION, f"{_not_kept(folder, error)}. {advice}") from error
    except ValueError as error:
        raise Stop(ExitCode.DEFECT, f"the server's answer cannot be used: {error}") from error
    expires = facts_of(certificate).expires
    return f"joined as {token.name}; the certificate is valid until {expires:%Y-%m-%d} and renews itself"


def _not_kept(folder: IdentityFolder, error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"the identity {folder.folder} cannot be kept ({where}{error.strerror or error})"


def _require_room(folder: IdentityFolder, wanted: Membership) -> None:
    """One folder is one site of one federation; it may join that again, with the same key."""
    known = folder.membership()
    if known is not None and known != wanted:
        message = f"{folder.folder} is the identity of {known.name} at {known.server}: give another --identity"
        message = f"{message}, or remove it if it is out of use"
        raise Stop(ExitCode.BAD_CONFIGURATION, message)


async def _require_somebody(server: str, token: JoinToken) -> None:
    """See that an address which the operator has given leads anywhere: it is kept, and the token works once."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(*split_address(server))
    except (OSError, TimeoutError) as error:
        message = f"{server} does not answer ({str(error) or 'no word in time'}); the token says {token.server}"
        raise Stop(ExitCode.UNREACHABLE, f"{message}. Nothing was sent: try again with the same token") from error
    writer.close()


async def _until_answered(
    address: str, token: JoinToken, request: enrolment_pb2.EnrolRequest, patience: Patience
) -> enrolment_pb2.EnrolResponse:
    try:
        return await until_done(lambda: _ask(address, token, request), lambda: 0, patience, "joining")
    except tls.UntrustedServer as error:
        raise Stop(ExitCode.UNTRUSTED, f"{error} Nothing was sent to it") from error
    except TransportError as error:
        message = f"cannot join at {address}: {plain_words(error)}{proxy_hint(address)}"
        if address != token.enrolment:
            message += f". The token says {token.enrolment}: --enrolment names another port than that one's"
        message += ". Nothing is lost: try again with the same token"
        raise Stop(ExitCode.UNREACHABLE, message) from error
    except LimitExceeded as error:
        raise Stop(ExitCode.UNREACHABLE, f"the server has no time for this site: {error.message}") from error
    except ProtocolError as error:
        raise Stop(ExitCode.UNTRUSTED, f"the server refused ({error.reason}): {error.message}") from error


async def _ask(address: str, token: JoinToken, request: enrolment_pb2.EnrolRequest) -> enrolment_pb2.EnrolResponse:
    # Nothing but a TLS handshake goes out before the certificate is known to be the token's.
    try:
        certificate = await asyncio.to_thread(tls.fetch_certificate, address, token.fingerprint)
    except tls.HungUp as error:
        message = f"{address} hung up after the handshake; if it goes on doing so, it is for sites that have joined"
        raise TransportError(f"{message}: the token says {token.enrolment} for joining (--enrolment)") from error
    credentials = tls.channel_credentials(certificate)
    options = (*tls.CHANNEL_OPTIONS, *tls.options_to(address), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        stub = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
        with translated():
            answer: enrolment_pb2.EnrolResponse = await stub.Enrol(request, timeout=QUICK_CALL_SECONDS)
            return answer
