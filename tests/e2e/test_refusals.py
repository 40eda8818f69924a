"""Who is kept out, on real connections: each with the code that the contract names, and a line in the audit log."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedclient.client import Client
from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.display import LogDisplay
from fedclient.exit_codes import ExitCode, Stop
from fedclient.identity import IdentityFolder
from fedclient.join import join
from fedserver.server import Listening, Server
from fedserver.store import State
from fedstream.certificates import (
    issue_server,
    make_authority,
    make_key,
    make_request,
)
from fedstream.errors import ProtocolError
from fedstream.join_token import JoinToken
from fedstream.manifest import Manifest, manifest_of
from fedstream.status import from_rpc_error
from fedstream.tls import (
    CHANNEL_OPTIONS,
    channel_credentials,
    fetch_certificate,
    server_credentials,
)
from fedstream.v1 import (
    admin_pb2,
    enrolment_pb2,
    enrolment_pb2_grpc,
    negotiation_pb2,
    transfer_pb2,
)
from tests.support.handshakes import described, identity_of, shake_hands
from tests.support.joining import QUICK, invited, joined
from tests.support.negotiating import members, over, parts_of
from tests.support.processes import Look, looking
from tests.support.self_signed import make_self_signed
from tests.support.serving import (
    BareSite,
    administration,
    body_of,
    cut,
    end_certificates,
    manifest_messages,
    serving,
)
from tests.support.stepping import SteppingFileSystem
from tests.support.tasks import random_weights

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]

SHAPES = "tests.support.tasks:Shapes"
DESCRIBE = negotiation_pb2.DescribeTaskRequest()


def audit_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "state" / "audit.jsonl").read_text().splitlines()]


def refusals_in(folder: Path) -> list[tuple[str, str, str]]:
    """Who was refused what, and why, by the audit log."""
    return [(one["site"], one["call"], one["reason"]) for one in audit_of(folder) if one["event"] == "call refused"]


async def refusal(call: Any) -> ProtocolError:
    """The protocol's error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert isinstance(error, ProtocolError), error
    assert caught.value.code().name == error.code
    return error


async def revoke(listening: Listening, name: str) -> None:
    channel, stub = administration(listening)
    async with channel:
        await stub.RevokeSite(admin_pb2.RevokeSiteRequest(client_name=name))


# In the handshake.


async def test_connection_without_a_sound_certificate_ends_in_the_handshake(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, listening):
        assert listening.enrolment_address is not None
        authority = server.federation.state.authority()
        member = (await joined(listening.admin_address, listening.enrolment_address, "alpha")).credentials()
        assert await described(listening, member.authority, member.identity) is grpc.StatusCode.OK
        strangers = {
            "nobody": None,
            "another authority": identity_of(make_authority(), "alpha"),
            "self-signed": make_self_signed(["alpha"]),
            "expired": identity_of(authority, "alpha", timedelta(minutes=-1)),
            "a server's": issue_server(authority, []),
        }
        ends = {kind: await described(listening, member.authority, one) for kind, one in strangers.items()}
        assert ends == dict.fromkeys(strangers, grpc.StatusCode.UNAVAILABLE)
    assert refusals_in(tmp_path) == []  # no call has begun; `tests/e2e/test_handshakes.py` has what is written down


async def test_certificate_that_the_server_does_not_know_is_unauthenticated(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, listening):
        authority = server.federation.state.authority()
        forged = identity_of(authority, "alpha")  # of the right authority, and in no book
        assert await described(listening, authority.certificate, forged) is grpc.StatusCode.UNAUTHENTICATED
    assert refusals_in(tmp_path) == [("alpha", "DescribeTask", "UNAUTHENTICATED")]


@pytest.mark.parametrize("port", ["members", "enrolment"])
async def test_tls_1_1_is_refused(tmp_path: Path, port: str) -> None:
    async with serving(tmp_path) as (_, listening):
        address = listening.address if port == "members" else listening.enrolment_address
        assert address is not None
        assert await asyncio.to_thread(shake_hands, address, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        with pytest.raises(ssl.SSLError) as caught:
            await asyncio.to_thread(shake_hands, address, ssl.TLSVersion.TLSv1_1)
    if "NO_PROTOCOLS_AVAILABLE" in str(caught.value):
        pytest.skip("this OpenSSL does not offer TLS 1.1 at all")
    # An alert, or gRPC hangs up without one; its own log says UNSUPPORTED_PROTOCOL.
    assert isinstance(caught.value, ssl.SSLEOFError) or "ALERT_PROTOCOL_VERSION" in str(caught.value)


# Revoked.


async def test_revoked_site_is_refused_on_every_call(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, listening), BareSite.dial(listening, "alpha") as site:
        await site.negotiation.DescribeTask(DESCRIBE)
        await revoke(listening, "alpha")
        certificates = enrolment_pb2_grpc.CertificateServiceStub(site.channel)
        calls = {
            "DescribeTask": site.negotiation.DescribeTask(DESCRIBE),
            "Negotiate": site.negotiation.Negotiate().read(),
            "PutManifest": site.transfer.PutManifest(iter(manifest_messages("x", Manifest(())))),
            "WriteChunks": site.transfer.WriteChunks(iter([transfer_pb2.WriteChunksRequest()])).read(),
            "GetUploadStatus": site.status("x"),
            "FinishUpload": site.finish("x"),
            "GetManifest": site.transfer.GetManifest(transfer_pb2.GetManifestRequest()).read(),
            "ReadChunks": site.transfer.ReadChunks(transfer_pb2.ReadChunksRequest()).read(),
            "RenewCertificate": certificates.RenewCertificate(enrolment_pb2.RenewCertificateRequest()),
        }
        for call in calls.values():
            error = await refusal(call)
            assert (error.reason, error.message) == (
                "PERMISSION_DENIED",
                "this site's certificate has been revoked; ask the coordinator",
            )
    assert sorted(refusals_in(tmp_path)) == [("alpha", name, "PERMISSION_DENIED") for name in sorted(calls)]
    assert [one["event"] for one in audit_of(tmp_path)][-len(calls) - 1] == "revoked"


async def test_site_revoked_in_mid_upload_is_cut_off_at_once_and_the_round_goes_on(tmp_path: Path) -> None:
    async with members(tmp_path, ["alpha", "beta"], task=SHAPES) as (server, listening, alpha, beta):
        offers = {site.name: await site.agree() for site in (alpha, beta)}
        schema = server.federation.schema
        weights = random_weights(schema, 1)
        manifest = manifest_of(schema, weights)
        upload_id = offers["alpha"].upload_id
        missing = (await alpha.put_manifest(upload_id, manifest)).missing_tensors
        first, *_ = cut(body_of(manifest, weights, missing), 100)
        stream = alpha.transfer.WriteChunks()
        message = transfer_pb2.WriteChunksRequest(upload_id=upload_id)
        message.chunk.data, message.chunk.crc32c = first.data, first.crc32c
        await stream.write(message)
        await asyncio.sleep(0.1)
        await revoke(listening, "alpha")
        for call in (stream, alpha.stream):
            error = await refusal(call_to_end(call))
            assert (error.reason, error.message) == (
                "PERMISSION_DENIED",
                "this site has been revoked; ask the coordinator",
            )
        assert (await beta.upload(offers["beta"].upload_id, schema, random_weights(schema, 2))).state == (
            transfer_pb2.UPLOAD_STATE_ADMITTED
        )
        await over(server, 1)
        why = "left: this site has been revoked; ask the coordinator"
        assert parts_of(server, 1) == {"alpha": ("failed", why), "beta": ("completed", "")}
        assert "alpha" not in {client.name for client in server.federation.idle}
    assert sorted(refusals_in(tmp_path)) == [
        ("alpha", "Negotiate", "PERMISSION_DENIED"),
        ("alpha", "WriteChunks", "PERMISSION_DENIED"),
    ]


def is_training(look: Look) -> bool:
    return [part.phase for part in look.parts.values()] == [negotiation_pb2.PHASE_TRAINING]


async def test_site_whose_certificate_ends_while_it_trains_says_failure_leaves_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"task_settings": {"seconds": "2"}}
    async with serving(tmp_path, min_clients=1, **settings) as (server, listening):
        assert listening.enrolment_address is not None
        identity = await joined(listening.admin_address, listening.enrolment_address, "alpha")
        given = {"identity": identity.folder, "name": "alpha", "server": listening.address, "data": "phantom"}
        folders = {"out": tmp_path / "site", "state_dir": tmp_path / "site" / "state", "pictures": False}
        client = asyncio.create_task(Client(ClientConfig.model_validate({**given, **folders}), LogDisplay()).run())
        await asyncio.to_thread(looking, listening, "training", is_training)
        end_certificates(server, monkeypatch)
        with pytest.raises(Stop, match="this site's certificate has expired; ask the coordinator") as caught:
            async with asyncio.timeout(30.0):
                await client
        assert (caught.value.code, caught.value.message.count("ask the coordinator")) == (ExitCode.UNTRUSTED, 1)
        await over(server, 1)
        assert parts_of(server, 1) == {"alpha": ("failed", "the server refused a call: UNAUTHENTICATED")}
        assert "alpha" not in {client.name for client in server.federation.idle}
    assert {(name, reason) for name, _, reason in refusals_in(tmp_path)} == {("alpha", "UNAUTHENTICATED")}


async def call_to_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_site_revoked_in_mid_download_is_cut_off_at_once(tmp_path: Path) -> None:
    settings = {"task": SHAPES, "task_settings": {"large_mib": "64"}}
    async with serving(tmp_path, **settings) as (server, listening), BareSite.dial(listening, "alpha") as site:
        model = server.federation.model
        request = transfer_pb2.ReadChunksRequest(model_sha256=model.digest.sha256, max_chunk_bytes=1 << 16)
        stream = site.transfer.ReadChunks(request)
        await stream.read()  # more than a window is left: the server waits for this end
        await revoke(listening, "alpha")
        assert (await refusal(call_to_end(stream))).reason == "PERMISSION_DENIED"
    assert refusals_in(tmp_path) == [("alpha", "ReadChunks", "PERMISSION_DENIED")]


# Somebody else's.


@asynccontextmanager
async def alpha_at_work(folder: Path) -> AsyncIterator[tuple[Server, Listening, BareSite, str, Manifest, Any]]:
    """Alpha has begun an upload, and beta is a member."""
    async with members(folder, ["alpha", "beta"], task=SHAPES) as (server, listening, alpha, beta):
        upload_id = (await alpha.agree()).upload_id
        await beta.agree()
        weights = random_weights(server.federation.schema, 1)
        manifest = manifest_of(server.federation.schema, weights)
        missing = (await alpha.put_manifest(upload_id, manifest)).missing_tensors
        yield server, listening, beta, upload_id, manifest, cut(body_of(manifest, weights, missing), 1 << 20)
        await alpha.upload(upload_id, server.federation.schema, weights)


async def test_site_that_reaches_for_anothers_upload_finds_none(tmp_path: Path) -> None:
    async with alpha_at_work(tmp_path) as (_, _, beta, upload_id, manifest, body):
        chunks = list(body)
        said = []
        for wanted in (upload_id, "0" * 32):
            errors = [
                await refusal(beta.put_manifest(wanted, manifest)),
                await refusal(beta.write(wanted, chunks)),
                await refusal(beta.status(wanted)),
                await refusal(beta.finish(wanted)),
            ]
            said.append([(error.reason, error.message, error.metadata) for error in errors])
        unknown = ("UNKNOWN_UPLOAD", "no upload of that id is expected; wait for the next offer", {})
        assert said == [[unknown] * 4] * 2
    assert set(refusals_in(tmp_path)) == {
        ("beta", name, "UNKNOWN_UPLOAD") for name in ("PutManifest", "WriteChunks", "GetUploadStatus", "FinishUpload")
    }


async def test_site_that_asks_for_anothers_update_finds_none(tmp_path: Path) -> None:
    async with alpha_at_work(tmp_path) as (_, _, beta, _, manifest, _):
        digest = manifest.model_digest().sha256
        request = transfer_pb2.GetManifestRequest(model_sha256=digest)
        assert (await refusal(beta.transfer.GetManifest(request).read())).reason == "UNKNOWN_MODEL"
        assert (await refusal(beta.download(digest))).reason == "UNKNOWN_MODEL"


async def test_site_that_says_anothers_name_is_refused_and_the_other_one_stays(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as (server, listening),
        BareSite.dial(listening) as alpha,
        BareSite.dial(listening, "beta") as beta,
    ):
        await alpha.join("alpha", server)
        stream = beta.negotiation.Negotiate()
        await stream.write(negotiation_pb2.NegotiateRequest(hello=negotiation_pb2.Hello(client_name="alpha")))
        error = await refusal(stream.read())
        assert (error.reason, error.metadata) == ("NAME_MISMATCH", {"name": "alpha"})
        assert [client.name for client in server.federation.idle] == ["alpha"]
    assert refusals_in(tmp_path) == [("beta", "Negotiate", "NAME_MISMATCH")]


# Joining.


async def enrol(listening: Listening, token: JoinToken, **changes: Any) -> enrolment_pb2.EnrolResponse:
    """One request to enrol, as it is told."""
    assert listening.enrolment_address is not None
    certificate = await asyncio.to_thread(fetch_certificate, listening.enrolment_address, token.fingerprint)
    request = enrolment_pb2.EnrolRequest(
        client_name=token.name,
        token_id=token.token_id,
        token_secret=token.secret,
        certificate_request=make_request(make_key(), token.name),
    )
    request.MergeFrom(enrolment_pb2.EnrolRequest(**changes))
    credentials = channel_credentials(certificate)
    async with grpc.aio.secure_channel(listening.enrolment_address, credentials, options=CHANNEL_OPTIONS) as channel:
        answer: enrolment_pb2.EnrolResponse = await enrolment_pb2_grpc.EnrolmentServiceStub(channel).Enrol(request)
        return answer


async def test_token_that_does_not_let_in_is_refused_with_the_documented_reason(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, listening):
        admin = listening.admin_address
        used, closed = await invited(admin, "used"), await invited(admin, "closed")
        brief = await invited(admin, "brief", valid_seconds=1)
        await enrol(listening, used)
        await revoke(listening, "closed")
        await asyncio.sleep(1.5)
        other = make_request(make_key(), "other")
        tries: dict[str, Any] = {
            "TOKEN_USED": enrol(listening, used),
            "TOKEN_EXPIRED": enrol(listening, brief),
            "TOKEN_REVOKED": enrol(listening, closed),
            "NAME_MISMATCH": enrol(listening, brief, client_name="other", certificate_request=other),
            "UNKNOWN_TOKEN": enrol(listening, brief, token_secret=bytes(16)),
            "INVALID_REQUEST": enrol(listening, brief, certificate_request=b"\x30"),
        }
        for reason, one in tries.items():
            assert (await refusal(one)).reason == reason
    lines = [one for one in audit_of(tmp_path) if one["event"] == "enrolment refused"]
    assert [(one["reason"], one["peer"]) for one in lines] == [(reason, "127.0.0.1") for reason in tries]


async def test_enrolment_that_is_replayed_gives_nothing_new(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, listening):
        token = await invited(listening.admin_address, "alpha")
        request = make_request(make_key(), "alpha")
        first = await enrol(listening, token, certificate_request=request)
        assert await enrol(listening, token, certificate_request=request) == first
        assert (await refusal(enrol(listening, token))).reason == "TOKEN_USED"
    events = [one["event"] for one in audit_of(tmp_path)]
    assert events[-4:] == ["invited", "enrolled", "enrolment repeated", "enrolment refused"]


async def test_site_whose_answer_was_lost_joins_with_the_same_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, listening):
        assert listening.enrolment_address is not None
        token = await invited(listening.admin_address, "alpha")
        folder = IdentityFolder(tmp_path / "identity")
        await enrol(listening, token, certificate_request=make_request(folder.key(), "alpha"))  # nothing of it is kept
        assert folder.membership() is None
        await join(token, listening.address, listening.enrolment_address, folder, QUICK)
        assert folder.membership() is not None
        found = folder.credentials()
        assert await described(listening, found.authority, found.identity) is grpc.StatusCode.OK


class BreakingFiles(SteppingFileSystem):
    """Breaks off at one step, counted from 0; says how many there were."""

    def __init__(self, breaks_at: int) -> None:
        super().__init__()
        self.breaks_at = breaks_at

    def step(self) -> None:
        super().step()
        if self.steps - 1 == self.breaks_at:
            raise BrokenOff


class BrokenOff(Exception):
    """The client is gone."""


async def test_join_that_breaks_off_at_any_step_is_finished_by_the_same_command(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, listening):
        assert listening.enrolment_address is not None
        for number in range(21):
            token = await invited(listening.admin_address, f"site-{number}")
            where, files = tmp_path / f"identity-{number}", BreakingFiles(number)
            try:
                await join(token, listening.address, listening.enrolment_address, IdentityFolder(where, files), QUICK)
                assert number == files.steps == 20, "four files: made, written, synced, named, the name synced"
            except BrokenOff:
                pass
            found = IdentityFolder(where)
            key = found.key()
            await join(token, listening.address, listening.enrolment_address, found, QUICK)
            assert (found.key(), found.credentials().facts.name) == (key, token.name)
    told = [one["event"] for one in audit_of(tmp_path)]
    assert told.count("enrolled") == 21
    assert told.count("enrolment refused") == 0


class Eavesdropper(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """Takes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[enrolment_pb2.EnrolRequest] = []

    async def Enrol(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name of the RPC
        self.heard.append(request)
        return enrolment_pb2.EnrolResponse()


async def test_somebody_in_between_with_a_certificate_of_his_own_hears_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, listening):
        token = await invited(listening.admin_address, "alpha")
        eavesdropper, between = Eavesdropper(), grpc.aio.server()
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(eavesdropper, between)
        port = between.add_secure_port("127.0.0.1:0", server_credentials(make_self_signed(["localhost"])))
        await between.start()
        with pytest.raises(Stop, match=r"it is another server, or somebody is in between.*Nothing was sent") as caught:
            await join(token, token.server, f"127.0.0.1:{port}", IdentityFolder(tmp_path / "identity"), QUICK)
        await between.stop(0)
        assert caught.value.code is ExitCode.UNTRUSTED
        assert eavesdropper.heard == []
    assert [one["event"] for one in audit_of(tmp_path)] == ["authority made", "invited"]


@pytest.mark.parametrize("impostor", ["a stranger", "a member"])
async def test_member_does_not_speak_to_somebody_in_between(tmp_path: Path, impostor: str) -> None:
    async with serving(tmp_path) as (_, listening):
        assert listening.enrolment_address is not None
        folder = await joined(listening.admin_address, listening.enrolment_address, "alpha")
        other = (await joined(listening.admin_address, listening.enrolment_address, "beta")).credentials().identity
        between = grpc.aio.server()
        shown = make_self_signed(["localhost"]) if impostor == "a stranger" else other
        port = between.add_secure_port("127.0.0.1:0", server_credentials(shown))
        await between.start()
        settings = {"identity": folder.folder, "name": "alpha", "server": f"127.0.0.1:{port}", "data": "phantom"}
        with pytest.raises(Stop, match="it is another server, or somebody is in between") as caught:
            await Connection(ClientConfig.model_validate(settings)).open()
        await between.stop(0)
        assert caught.value.code is ExitCode.UNTRUSTED


def test_keys_and_the_audit_log_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    async def live() -> None:
        async with serving(tmp_path) as (_, listening), BareSite.dial(listening, "alpha"):
            pass

    asyncio.run(live())
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir() if path.is_file()}
    private = ("authority.key", "authority.crt", "server.key", "server.crt", "audit.jsonl", "state.db")
    assert {name: modes[name] for name in private} == dict.fromkeys(private, 0o600)
    site = tmp_path / "state" / "identities" / "alpha"
    kept = ("site.key", "site.crt", "authority.crt", "identity.json")
    assert {name: (site / name).stat().st_mode & 0o777 for name in kept} == dict.fromkeys(kept, 0o600)
    state = State(tmp_path / "state")
    key = state.authority().key
    state.close()
    everything = [
        path.read_bytes() for path in (tmp_path / "state").glob("*") if path.name.startswith(("audit", "state"))
    ]
    assert not any(key in one or (site / "site.key").read_bytes() in one for one in everything)
