"""Handshakes with a server, sound ones and others."""

from __future__ import annotations

import socket
import ssl
from datetime import timedelta

import grpc

from fedserver.server import Listening
from fedstream.certificates import issue_site, make_key, make_request, read_request
from fedstream.tls import CHANNEL_OPTIONS, Identity, channel_credentials, split_address
from fedstream.v1 import negotiation_pb2, negotiation_pb2_grpc


async def described(listening: Listening, authority: bytes, identity: Identity | None) -> grpc.StatusCode:
    """How a call with that identity ends."""
    credentials = channel_credentials(authority, identity)
    request = negotiation_pb2.DescribeTaskRequest()
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(listening.address, credentials, options=options) as channel:
        try:
            await negotiation_pb2_grpc.NegotiationServiceStub(channel).DescribeTask(request, timeout=20)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def identity_of(authority: Identity, name: str, validity: timedelta = timedelta(days=1)) -> Identity:
    """A site's key, and the certificate that an authority gives it."""
    key = make_key()
    public_key = read_request(make_request(key, name)).public_key
    return Identity(key, issue_site(authority, name, public_key, validity))


def shake_hands(address: str, version: ssl.TLSVersion) -> str | None:
    """The version of TLS that was agreed on, where only one is offered; what the server shows is not checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # or OpenSSL itself would refuse what is old
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(split_address(address), 10) as plain,
        context.wrap_socket(plain, server_hostname="fedstream-server") as secured,
    ):
        return secured.version()
