"""The client in JavaScript towards a server that asks for certificates. A few seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import trustme

from fedclient.exit_codes import ExitCode
from fedstream.tls import SERVER_NAME
from fedstream.v1 import negotiation_pb2, negotiation_pb2_grpc
from tests.support.foreign import marks
from tests.support.node import NODE
from tests.support.processes import Stage

pytestmark = marks(NODE)


class OtherTask(negotiation_pb2_grpc.NegotiationServiceServicer):
    """A federation of another task: who hears that has got through, and ends at once."""

    async def DescribeTask(self, request, context):  # noqa: N802 - the name of the RPC
        return negotiation_pb2.DescribeTaskResponse(task_name="another")


@asynccontextmanager
async def demanding(authority: trustme.CA) -> AsyncIterator[str]:
    """A server that lets nobody in without a certificate of that authority."""
    own = authority.issue_cert(SERVER_NAME)
    pair = (own.private_key_pem.bytes(), b"".join(blob.bytes() for blob in own.cert_chain_pems))
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=True)
    server = grpc.aio.server()
    negotiation_pb2_grpc.add_NegotiationServiceServicer_to_server(OtherTask(), server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def words(address: str, folder: Path) -> list[str]:
    """A client that gives up soon and trusts the authority whose certificate lies in the folder."""
    command = [*NODE.run, "--server", address, "--name", "alpha", "--data", "none"]
    return [
        *command,
        "--server-ca",
        str(folder / "ca.pem"),
        "--give-up-after",
        "0.1",
        "--state-dir",
        str(folder / "st"),
    ]


async def test_node_client_shows_the_certificate_that_it_is_given(scene: Stage) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(scene.folder / "ca.pem")
    site = authority.issue_cert("alpha.example.org")
    site.private_key_pem.write_to_path(scene.folder / "key.pem")
    site.cert_chain_pems[0].write_to_path(scene.folder / "site.pem")
    async with demanding(authority) as address:
        given = ["--certificate", str(scene.folder / "site.pem"), "--key", str(scene.folder / "key.pem")]
        known = scene.launch("known", [*words(address, scene.folder), *given])
        assert await known.ended() == ExitCode.DECLINED, known.text
        assert "this federation learns another" in known.text
        unknown = scene.launch("unknown", words(address, scene.folder))
        assert await unknown.ended() == ExitCode.UNREACHABLE, unknown.text


async def test_node_client_does_not_trust_a_server_of_another_authority(scene: Stage) -> None:
    trustme.CA().cert_pem.write_to_path(scene.folder / "ca.pem")
    async with demanding(trustme.CA()) as address:
        client = scene.launch("alpha", words(address, scene.folder))
        assert await client.ended() == ExitCode.UNREACHABLE
        assert "no contact to" in client.text
