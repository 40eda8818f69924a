"""Trust by fingerprint, over real sockets. About 2 s."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedstream import tls
from fedstream.errors import TransportError
from fedstream.tls import (
    CHANNEL_OPTIONS,
    FingerprintMismatch,
    Identity,
    ascii_host,
    channel_credentials,
    fetch_certificate,
    fingerprint,
    is_loopback,
    server_credentials,
    split_address,
)
from tests.support.self_signed import make_self_signed

pytestmark = pytest.mark.numpy_task


@pytest.fixture(scope="module")
def identity() -> Identity:
    return make_self_signed(["fl.example.org", "192.0.2.7", "2001:db8::1"])


@contextmanager
def grpc_server(identity: Identity) -> Iterator[str]:
    """A real gRPC server that answers `/test/Echo` over TLS."""
    server = grpc.server(ThreadPoolExecutor(2))
    methods = {"Echo": grpc.unary_unary_rpc_method_handler(lambda request, context: request)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(identity))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def server_for_members(identity: Identity) -> Iterator[str]:
    """A real gRPC server that asks every client for a certificate."""
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(identity, identity.certificate))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_server_that_asks_for_a_certificate_is_told_from_one_that_cannot_be_reached(identity: Identity) -> None:
    mark = fingerprint(identity.certificate)
    with server_for_members(identity) as address:
        with pytest.raises(TransportError, match="run `fedclient join`"):
            fetch_certificate(address, mark)
        assert tls.look_at(address).hung_up
    with grpc_server(identity) as address:
        assert fetch_certificate(address, mark) == identity.certificate
        assert not tls.look_at(address).hung_up


@contextmanager
def listener(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A plain TCP server that treats its only connection as told."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_certificate_made_is_for_its_hosts_and_itself_and_valid_for_a_year(identity: Identity) -> None:
    certificate = x509.load_pem_x509_certificate(identity.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fedstream-server", "localhost", "fl.example.org"]
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "::1", "192.0.2.7", "2001:db8::1"]
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    now = datetime.now(UTC)
    assert certificate.not_valid_before_utc < now - timedelta(minutes=59)
    assert timedelta(days=396) < certificate.not_valid_after_utc - now <= timedelta(days=397)


def test_certificates_made_twice_have_different_keys() -> None:
    one, other = make_self_signed([]), make_self_signed([])
    assert one.key != other.key
    assert fingerprint(one.certificate) != fingerprint(other.certificate)


def test_fingerprint_is_sha256_of_the_der_form(identity: Identity) -> None:
    der = ssl.PEM_cert_to_DER_cert(identity.certificate.decode())
    assert fingerprint(identity.certificate) == f"sha256:{hashlib.sha256(der).hexdigest()}"


def test_identity_shown_does_not_show_its_key(identity: Identity) -> None:
    assert identity.key.startswith(b"-----BEGIN PRIVATE KEY-----")
    for shown in (repr(identity), str(identity), f"{identity}"):
        assert "PRIVATE KEY" not in shown
        assert identity.key.decode().splitlines()[1] not in shown


def test_certificate_fetched_by_its_fingerprint_is_trusted_by_a_channel_to_an_address(identity: Identity) -> None:
    with grpc_server(identity) as address:
        certificate = fetch_certificate(address, fingerprint(identity.certificate))
        assert certificate.split() == identity.certificate.split()
        with grpc.secure_channel(address, channel_credentials(certificate), options=CHANNEL_OPTIONS) as channel:
            assert channel.unary_unary("/test/Echo")(b"hello", timeout=10) == b"hello"


def test_channel_that_trusts_another_certificate_does_not_connect(identity: Identity) -> None:
    other = make_self_signed([])
    credentials = channel_credentials(other.certificate)
    with (
        grpc_server(identity) as address,
        grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/test/Echo")(b"hello", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_fingerprint_as_a_person_types_it_is_taken(identity: Identity) -> None:
    with grpc_server(identity) as address:
        fetch_certificate(address, f"  {fingerprint(identity.certificate).upper()}\n")


@pytest.mark.parametrize(
    "expected", ["sha256:" + "0" * 64, "", "sha256:", "größe", "0" * 64], ids=["other", "none", "cut", "odd", "bare"]
)
def test_certificate_with_another_fingerprint_is_refused_with_both(identity: Identity, expected: str) -> None:
    with grpc_server(identity) as address, pytest.raises(FingerprintMismatch) as caught:
        fetch_certificate(address, expected)
    assert str(caught.value) == (
        f"the server at {address} has the certificate {fingerprint(identity.certificate)}, not {expected}: it is "
        "another server, or somebody is in between. Ask the coordinator for the current join command."
    )


def test_certificate_of_the_same_names_from_somebody_in_between_is_refused(identity: Identity) -> None:
    impostor = make_self_signed(["fl.example.org", "192.0.2.7", "2001:db8::1"])
    with grpc_server(impostor) as address, pytest.raises(FingerprintMismatch):
        fetch_certificate(address, fingerprint(identity.certificate))


ANSWERS: dict[str, Callable[[socket.socket], None]] = {
    "speaks HTTP": lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "sends a greeting": lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "hangs up": lambda connection: None,
    "hangs up after the hello": lambda connection: connection.recv(5) and None,
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_server_without_tls_is_a_transport_error_that_asks_about_the_port(kind: str) -> None:
    with listener(ANSWERS[kind]) as address, pytest.raises(TransportError, match=f"{address}.* port") as caught:
        fetch_certificate(address, "sha256:" + "0" * 64)
    assert str(caught.value).endswith("?")


def test_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_CONNECT_TIMEOUT_SECONDS", 0.2)
    release = threading.Event()
    with listener(lambda connection: release.wait(10) and None) as address:
        with pytest.raises(TransportError, match=rf"cannot reach {address} \(.*timed out\)"):
            fetch_certificate(address, "sha256:" + "0" * 64)
        release.set()


def test_address_where_nothing_listens_is_a_transport_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TransportError, match=rf"cannot reach 127\.0\.0\.1:{port} .*is the server running"):
        fetch_certificate(f"127.0.0.1:{port}", "sha256:" + "0" * 64)


@pytest.mark.parametrize("host", ["x" * 64 + ".invalid", "no such host.invalid", "a..b"])
def test_host_that_cannot_be_is_a_transport_error(host: str) -> None:
    with pytest.raises(TransportError, match="cannot reach"):
        fetch_certificate(f"{host}:443", "sha256:" + "0" * 64)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:8443", ("127.0.0.1", 8443)),
        ("fl.example.org:1", ("fl.example.org", 1)),
        ("[::1]:65535", ("::1", 65_535)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_address_is_split_into_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address", ["", ":", "host", "host:", ":8443", "[]:8443", "host:-1", "host:x", "a:1 ", "https://host:8443"]
)
def test_address_that_is_none_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(ValueError, match="is no address; write HOST:PORT, such as") as caught:
        split_address(address)
    assert repr(address) in str(caught.value)


def test_address_with_a_port_that_is_none_says_how_far_they_go() -> None:
    with pytest.raises(ValueError, match="'host:65536' is no address; ports go up to 65535"):
        split_address("host:65536")


@pytest.mark.parametrize("host", ["fl.example.org", "fl.example.org.", "my_server", "192.0.2.7", "2001:db8::1"])
def test_host_that_can_be_one_stays_as_it_is(host: str) -> None:
    assert ascii_host(host) == host


@pytest.mark.parametrize("host", ["https://fl.example.org", "fl.example.org:8443", "fl example", "[::1]", "a,b", "*"])
def test_host_with_more_than_a_name_is_refused_with_an_example(host: str) -> None:
    with pytest.raises(ValueError, match=r"is no name of a machine: write .* without a port, such as") as caught:
        ascii_host(host)
    assert repr(host) in str(caught.value)


def test_loopback_is_what_only_this_machine_can_reach() -> None:
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1")] == [True] * 4
    others = (
        "0.0.0.0",  # noqa: S104 - compared, not listened on
        "::",
        "192.168.0.1",
        "10.0.0.1",
        "example.org",
        "localhost.example.org",
        "127.0.0.1.example.org",
    )
    assert [is_loopback(host) for host in others] == [False] * 7


def test_private_key_is_in_a_form_that_other_tools_read(identity: Identity, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(identity.key)
    (tmp_path / "certificate").write_bytes(identity.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")  # raises if they do not belong together
