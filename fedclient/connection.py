"""The one channel of a client: to one server that it trusts, kept alive through NATs and proxies."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from fedclient import codec, requests
from fedclient.calls import QUICK_CALL_SECONDS, translated
from fedclient.chunk_size import ChunkSize
from fedclient.config import ClientConfig
from fedclient.events import FederationOnOffer, TaskOnOffer
from fedclient.trust import trust_of
from fedstream import tls
from fedstream.chunk_messages import decode_read_chunks
from fedstream.v1 import enrolment_pb2_grpc, negotiation_pb2_grpc, transfer_pb2, transfer_pb2_grpc

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
        self._trust = trust_of(config)
        self._channel: grpc.aio.Channel | None = None
        self.chunk_size = ChunkSize()
        """How large a chunk may be to get through. It outlasts sessions and channels, which break with the line."""
        self.certificates: enrolment_pb2_grpc.CertificateServiceAsyncStub
        self.negotiation: negotiation_pb2_grpc.NegotiationServiceAsyncStub
        self.transfer: transfer_pb2_grpc.TransferServiceAsyncStub

    @property
    def server(self) -> str:
        """Which server this leads to, in a form to be compared with what was noted earlier."""
        return f"{self._config.server} {self._trust.anchor()}"

    async def open(self) -> None:
        """Check who answers at the address, and open the channel if it is not open yet. Idempotent.

        Raises:
            TransportError: nobody answers.
            Stop: with `UNTRUSTED`, another server answers than the one that was named.
        """
        await self._trust.prepare(self._config.server)
        if self._channel is None:
            self._take(self._open_channel())

    @property
    def is_out_of_reach(self) -> bool:
        """Whether the last try to connect failed. A call that fails then has sent nothing."""
        state = grpc.ChannelConnectivity.TRANSIENT_FAILURE
        return self._channel is not None and self._channel.get_state() is state

    async def reopen(self) -> None:
        """Connect anew, with the credentials as they are now. Calls at work are cut, and may be made again at once."""
        before = self._channel
        self._take(self._open_channel())
        if before is not None:
            await before.close()

    def _take(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.negotiation = negotiation_pb2_grpc.NegotiationServiceStub(channel)
        self.transfer = _transfer_stub(channel)
        self.certificates = enrolment_pb2_grpc.CertificateServiceStub(channel)

    def _open_channel(self) -> grpc.aio.Channel:
        credentials, server = self._trust.credentials(), self._config.server
        options = (*CHANNEL_OPTIONS, *tls.options_to(server))
        if credentials is None:
            return grpc.aio.insecure_channel(server, options=options)
        return grpc.aio.secure_channel(server, credentials, options=(*options, *tls.CHANNEL_OPTIONS))

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


def _transfer_stub(channel: grpc.aio.Channel) -> transfer_pb2_grpc.TransferServiceAsyncStub:
    """The generated stub, but for the messages with chunks: `WriteChunks` is given them serialised, and `ReadChunks`
    gives `Chunk`s."""
    stub: Any = transfer_pb2_grpc.TransferServiceStub(channel)
    service = transfer_pb2.DESCRIPTOR.services_by_name["TransferService"].full_name
    stub.WriteChunks = channel.stream_stream(
        f"/{service}/WriteChunks", response_deserializer=transfer_pb2.WriteChunksResponse.FromString
    )
    stub.ReadChunks = channel.unary_stream(
        f"/{service}/ReadChunks",
        request_serializer=transfer_pb2.ReadChunksRequest.SerializeToString,
        response_deserializer=decode_read_chunks,
    )
    made: transfer_pb2_grpc.TransferServiceAsyncStub = stub
    return made
