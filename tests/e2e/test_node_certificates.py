"""The client in JavaScript and certificates: joining by a token, renewal, and whom it trusts. Some 20 seconds."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import trustme

from fedclient.exit_codes import ExitCode
from fedclient.identity import IdentityFolder, Membership
from fedstream.certificates import issue_site, make_authority, make_request, read_request
from fedstream.tls import SERVER_NAME
from fedstream.v1 import negotiation_pb2, negotiation_pb2_grpc
from tests.support.features import SETTINGS, write_site
from tests.support.foreign import marks
from tests.support.joining import invited
from tests.support.node import NODE
from tests.support.processes import RunningServer, Said, Stage

pytestmark = marks(NODE)

HEAD = {"task": "brain_mri_head", **SETTINGS}


def join(*words: str) -> Said:
    """Run `join` to its end."""
    command = [*NODE.join, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, input="")
    return Said(done.returncode, done.stdout, done.stderr)


def token_of(server: RunningServer, name: str) -> str:
    """A new invitation."""
    return asyncio.run(invited(server.listening.admin_address, name)).encode()


def run_words(folder: Path, *more: str) -> list[str]:
    """A client of an identity that gives up soon."""
    files = ["--out", str(folder / "out"), "--state-dir", str(folder / "st"), "--give-up-after", "20"]
    return [*NODE.run, "--identity", str(folder / "id"), *files, *more]


# --- Joining ---


@dataclass(frozen=True, slots=True)
class Site:
    """A site that has joined, the server that it joined, and what was said."""

    server: RunningServer
    identity: Path
    token: str
    said: Said


@pytest.fixture
def site(scene: Stage) -> Site:
    server = scene.server("--rounds", "1", "--min-clients", "1", **HEAD)
    token, identity = token_of(server, "alpha"), scene.folder / "alpha" / "id"
    said = join(server.listening.address, "--token", token, "--identity", str(identity))
    return Site(server, identity, token, said)


def test_either_program_uses_what_the_other_left(scene: Stage, site: Site) -> None:
    data = str(write_site(scene.folder, seed=1))
    both = {"python": site.identity, "node": scene.folder / "beta" / "id"}
    token = token_of(site.server, "beta")
    assert scene.command("fedclient", "join", "--token", token, "--identity", str(both["node"])).status == 0
    node = scene.launch("node", run_words(scene.folder / "beta", "--data", data, "--max-epochs", "1"))
    assert node.wait() == 0, node.text
    assert site.server.wait() == 0
    files = ["--out", str(scene.folder / "out"), "--state-dir", str(scene.folder / "st"), "--give-up-after", "1"]
    words = ["run", "--identity", str(both["python"]), "--data", data, *files]
    # It took the identity, and nobody was there any more.
    assert scene.command("fedclient", *words).status == ExitCode.UNREACHABLE


def test_folder_of_one_site_is_not_given_to_another(site: Site) -> None:
    token = token_of(site.server, "beta")
    said = join(site.server.listening.address, "--token", token, "--identity", str(site.identity))
    assert said.status == ExitCode.BAD_CONFIGURATION
    assert f"{site.identity} is the identity of alpha" in said.err


def test_revoked_site_ends_with_the_reason(scene: Stage, site: Site) -> None:
    waiting = scene.server("--min-clients", "2", name="waiting", **HEAD)
    folder = scene.folder / "beta"
    assert join("--token", token_of(waiting, "beta"), "--identity", str(folder / "id")).status == 0
    client = scene.launch("beta", run_words(folder, "--data", str(write_site(scene.folder, seed=1))))
    waiting.until("beta to be here", lambda look: look.clients.get("beta") == "idle")
    assert scene.command("fedserver", "revoke", "beta", "--state", str(waiting.state)).status == 0
    assert client.wait() == ExitCode.UNTRUSTED
    assert "this site has been revoked; ask the coordinator" in client.text


def test_expired_certificate_is_said_before_anything_is_tried(scene: Stage) -> None:
    authority, folder = make_authority(), IdentityFolder(scene.folder / "id")
    key = folder.key()
    lasting = issue_site(authority, "alpha", read_request(make_request(key, "alpha")).public_key, timedelta(seconds=-1))
    folder.keep(Membership("alpha", "127.0.0.1:1"), lasting, authority.certificate)
    client = scene.launch("alpha", run_words(scene.folder, "--data", "none"))
    assert client.wait() == ExitCode.UNTRUSTED
    assert "this site's certificate has expired on" in client.text


def test_fingerprint_is_enough_where_the_server_asks_for_no_certificates(scene: Stage) -> None:
    server = scene.server("--rounds", "1", "--min-clients", "1", open_enrolment=True, **HEAD)
    assert server.listening.fingerprint is not None
    trust = ["--server", server.listening.address, "--fingerprint", server.listening.fingerprint, "--name", "alpha"]
    files = ["--out", str(scene.folder / "out"), "--state-dir", str(scene.folder / "st")]
    data = str(write_site(scene.folder, seed=1))
    client = scene.launch("alpha", [*NODE.run, *trust, *files, "--data", data, "--give-up-after", "20"])
    assert (client.wait(), server.wait()) == (0, 0), client.text


# --- Certificates of a site's own authority ---


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


def brought(folder: Path, shown: trustme.CA, trusted: trustme.CA) -> list[str]:
    """Three files of a site: a certificate of the one authority, and trust in the other."""
    leaf = shown.issue_cert("alpha.example.org", common_name="alpha")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(folder / "site.pem")
    trusted.cert_pem.write_to_path(folder / "ca.pem")
    files = {"--certificate": "site.pem", "--key": "key.pem", "--server-ca": "ca.pem"}
    return [word for option, file in files.items() for word in (option, str(folder / file))]


def words(address: str, folder: Path) -> list[str]:
    """A client that gives up soon."""
    command = [*NODE.run, "--server", address, "--data", "none", "--state-dir", str(folder / "st")]
    return [*command, "--give-up-after", "0.1"]


async def test_node_client_shows_the_certificate_that_it_is_given(scene: Stage) -> None:
    authority = trustme.CA()
    async with demanding(authority) as address:
        known = scene.launch("known", [*words(address, scene.folder), *brought(scene.folder, authority, authority)])
        assert await known.ended() == ExitCode.DECLINED, known.text
        assert "this federation learns another" in known.text
        assert known.said("trying again") == []


async def test_node_client_whose_certificate_is_not_taken_says_so(scene: Stage) -> None:
    authority = trustme.CA()
    async with demanding(authority) as address:
        files = brought(scene.folder, trustme.CA(), authority)
        unknown = scene.launch("unknown", [*words(address, scene.folder), *files])
        assert await unknown.ended() == ExitCode.UNREACHABLE, unknown.text
        assert "it does not take this site's certificate" in unknown.text


async def test_node_client_does_not_trust_a_server_of_another_authority(scene: Stage) -> None:
    authority = trustme.CA()
    async with demanding(authority) as address:
        files = brought(scene.folder, authority, trustme.CA())
        client = scene.launch("alpha", [*words(address, scene.folder), *files])
        assert await client.ended() == ExitCode.UNTRUSTED, client.text
        assert "has no certificate of this federation's authority" in client.text
