"""The one channel of a client: to one server, trusted by its fingerprint, kept alive through NATs and proxies."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from fedclient import codec, requests
from fedclient.calls import QUICK_CALL_SECONDS, translated
from fedclient.config import ClientConfig
from fedclient.events import FederationOnOffer, TaskOnOffer
from fedclient.exit_codes import ExitCode, Stop
from fedstream import tls
from fedstream.v1 import negotiation_pb2_grpc, transfer_pb2_grpc

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    # A NAT forgets an idle connection after minutes, some after one; a ping each half minute also finds a dead peer.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Clients of one process (tests, load generators) are to be as separate as clients of many.
    ("grpc.use_local_subchannel_pool", 1),
    # Coming back is done by `fedclient.calls`, with the log line that says why; gRPC's own waits stay below it.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class Connection:
    """A channel and its stubs. `open` comes first, and again before each new session."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._channel: grpc.aio.Channel | None = None
        self.negotiation: negotiation_pb2_grpc.NegotiationServiceAsyncStub
        self.transfer: transfer_pb2_grpc.TransferServiceAsyncStub

    async def open(self) -> None:
        """Check who answers at the address, and open the channel if it is not open yet. Idempotent.

        The fingerprint is checked each time: gRPC could only say that a handshake failed, and would try for ever.

        Raises:
            TransportError: nobody answers.
            Stop: with `UNTRUSTED`, another server answers than the one that was named.
        """
        certificate = None if self._config.plaintext else await self._fetch_certificate()
        if self._channel is None:
            self._channel = self._open_channel(certificate)
            self.negotiation = negotiation_pb2_grpc.NegotiationServiceStub(self._channel)
            self.transfer = transfer_pb2_grpc.TransferServiceStub(self._channel)

    async def _fetch_certificate(self) -> bytes:
        assert self._config.fingerprint is not None
        try:
            return await asyncio.to_thread(tls.fetch_certificate, self._config.server, self._config.fingerprint)
        except tls.FingerprintMismatch as error:
            raise Stop(ExitCode.UNTRUSTED, str(error)) from error

    def _open_channel(self, certificate: bytes | None) -> grpc.aio.Channel:
        if certificate is None:
            return grpc.aio.insecure_channel(self._config.server, options=CHANNEL_OPTIONS)
        credentials = tls.channel_credentials(certificate)
        return grpc.aio.secure_channel(
            self._config.server, credentials, options=(*CHANNEL_OPTIONS, *tls.CHANNEL_OPTIONS)
        )

    async def describe_task(self) -> TaskOnOffer:
        """What the federation learns.

        Raises:
            TransportError: the call did not get through.
        """
        return (await self.describe()).task

    async def describe(self) -> FederationOnOffer:
        """All that the server says before anybody says hello.

        Raises:
            TransportError: the call did not get through.
        """
        with translated():
            request = requests.describe_task()
            return codec.read_federation(await self.negotiation.DescribeTask(request, timeout=QUICK_CALL_SECONDS))

    async def close(self) -> None:
        """Close the channel. Safe to call twice."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
