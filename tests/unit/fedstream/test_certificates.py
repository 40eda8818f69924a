"""Certificates of a federation: what they say, who signed them, and what they can be used for. A moment."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import time_machine
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fedstream.certificates import (
    facts_of,
    is_issued_by,
    issue_server,
    issue_site,
    key_sha256,
    make_authority,
    make_key,
    make_request,
    public_key_of,
    read_request,
    to_der,
    to_pem,
)
from fedstream.errors import TransportError
from fedstream.tls import (
    CHANNEL_OPTIONS,
    SERVER_NAME,
    Identity,
    UntrustedServer,
    channel_credentials,
    check_server,
    fetch_certificate,
    fingerprint,
    look_at,
    server_credentials,
)

pytestmark = pytest.mark.numpy_task

AUTHORITY = make_authority()
SERVER = issue_server(AUTHORITY, ["fl.example.org", "192.0.2.7"])


def site(name: str, authority: Identity = AUTHORITY, validity: timedelta = timedelta(days=90)) -> Identity:
    key = make_key()
    public_key = read_request(make_request(key, name)).public_key
    return Identity(key, issue_site(authority, name, public_key, validity))


@contextmanager
def listening(identity: Identity, client_roots: bytes | None = None) -> Iterator[str]:
    """A server that echoes."""
    server = grpc.server(ThreadPoolExecutor(1))
    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Echo": echo}),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(identity, client_roots))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


def echo(address: str, authority: bytes, identity: Identity | None) -> bytes:
    credentials = channel_credentials(authority, identity)
    with grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS) as channel:
        answer: bytes = channel.unary_unary("/test/Echo")(b"hello", timeout=10)
        return answer


def files_of(folder: Path, identity: Identity) -> tuple[Path, Path]:
    """Key and certificate as a site keeps them."""
    key, certificate = folder / "site.key", folder / "site.crt"
    key.write_bytes(identity.key)
    certificate.write_bytes(identity.certificate)
    return key, certificate


@pytest.fixture
def alpha(tmp_path: Path) -> tuple[Path, Path]:
    return files_of(tmp_path, site("alpha"))


def test_site_and_server_of_one_authority_talk(alpha: tuple[Path, Path]) -> None:
    with listening(SERVER, AUTHORITY.certificate) as address:
        check_server(address, AUTHORITY.certificate, *alpha)
        assert look_at(address).certificate == SERVER.certificate
        assert echo(address, AUTHORITY.certificate, site("alpha")) == b"hello"


OTHER = make_authority()
STRANGERS = {
    "nobody": None,
    "of another authority": site("alpha", OTHER),
    "expired": site("alpha", validity=timedelta(minutes=-1)),
    "the server's own": SERVER,
    "the authority itself": AUTHORITY,
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_client_without_a_sound_certificate_is_refused_in_the_handshake(kind: str) -> None:
    with listening(SERVER, AUTHORITY.certificate) as address, pytest.raises(grpc.RpcError) as caught:
        echo(address, AUTHORITY.certificate, STRANGERS[kind])
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("kind", ["of another authority", "expired", "the server's own"])
def test_look_at_a_server_that_does_not_take_the_certificate_says_so(tmp_path: Path, kind: str) -> None:
    stranger = STRANGERS[kind]
    assert stranger is not None
    refused = pytest.raises(TransportError, match="it does not take this site's certificate")
    with listening(SERVER, AUTHORITY.certificate) as address, refused:
        check_server(address, AUTHORITY.certificate, *files_of(tmp_path, stranger))


@pytest.mark.parametrize("impostor", [site(SERVER_NAME), issue_server(OTHER, [])], ids=["a member", "a stranger"])
def test_somebody_in_between_does_not_pass_for_the_server(impostor: Identity, alpha: tuple[Path, Path]) -> None:
    with listening(impostor) as address:
        with pytest.raises(UntrustedServer, match=f"{address} has no certificate of this federation's authority"):
            check_server(address, AUTHORITY.certificate, *alpha)
        with pytest.raises(grpc.RpcError):
            echo(address, AUTHORITY.certificate, None)


@contextmanager
def clock_off_by(days: float) -> Iterator[None]:
    """Certificates are made then; whoever looks at them looks now."""
    with time_machine.travel(datetime.now(UTC) + timedelta(days=days)):
        yield


@pytest.mark.parametrize("authority_too", [False, True])
def test_server_whose_certificate_is_not_valid_yet_is_told_with_its_dates_and_may_be_tried_again(
    tmp_path: Path, authority_too: bool
) -> None:
    with clock_off_by(2):
        authority = make_authority() if authority_too else AUTHORITY
        server = issue_server(authority, [])
    files, begins = files_of(tmp_path, site("alpha", authority)), facts_of(server.certificate).begins
    with listening(server) as address, pytest.raises(TransportError) as told:
        check_server(address, authority.certificate, *files)
    assert f"{address} has a certificate for {begins:%Y-%m-%d %H:%M} to " in str(told.value)
    assert f", and this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:}" in str(told.value)
    assert str(told.value).endswith(" UTC: set this machine's clock, or, if it is right, tell the coordinator")
    with (
        listening(server) as address,
        pytest.raises(TransportError, match=r"set this machine's clock, or, if it is right, tell"),
    ):
        fetch_certificate(address, fingerprint(server.certificate))


def test_server_whose_certificate_has_expired_is_told_with_its_dates(alpha: tuple[Path, Path]) -> None:
    with clock_off_by(-400):
        server = issue_server(AUTHORITY, [])
    words = "set this machine's clock, or, if it is right, ask the coordinator for a new certificate"
    with listening(server) as address, pytest.raises(UntrustedServer, match=words):
        check_server(address, AUTHORITY.certificate, *alpha)
    with listening(server) as address, pytest.raises(UntrustedServer, match=words):
        fetch_certificate(address, fingerprint(server.certificate))


def posing_as(authority: Identity) -> Identity:
    """A server's key and certificate that names an authority which has not signed it."""
    key, own = ec.generate_private_key(ec.SECP256R1()), x509.load_pem_x509_certificate(authority.certificate)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)]))
        .issuer_name(own.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Identity(private, builder.sign(key, hashes.SHA256()).public_bytes(pem))


def test_somebody_in_between_where_the_clock_is_wrong_is_still_somebody_in_between(tmp_path: Path) -> None:
    with clock_off_by(2):
        authority = make_authority()
    files, between = files_of(tmp_path, site("alpha", authority)), pytest.raises(UntrustedServer, match="in between")
    with listening(posing_as(authority)) as address, between:
        check_server(address, authority.certificate, *files)


def test_server_with_a_new_certificate_of_its_authority_is_the_same_server(alpha: tuple[Path, Path]) -> None:
    with listening(issue_server(AUTHORITY, [])) as address:
        check_server(address, AUTHORITY.certificate, *alpha)
        assert echo(address, AUTHORITY.certificate, None) == b"hello"


def test_address_where_nothing_listens_is_a_transport_error(alpha: tuple[Path, Path]) -> None:
    with pytest.raises(TransportError, match=r"cannot reach 127\.0\.0\.1:1 .*is the server running"):
        check_server("127.0.0.1:1", AUTHORITY.certificate, *alpha)


def test_certificate_says_who_it_is_for_and_how_long() -> None:
    identity = site("alpha", validity=timedelta(days=90))
    facts, now = facts_of(identity.certificate), datetime.now(UTC)
    assert (facts.name, facts.fingerprint) == ("alpha", fingerprint(identity.certificate))
    assert facts.key_sha256 == key_sha256(identity.key)
    assert timedelta(days=89, hours=23) < facts.expires - now <= timedelta(days=90)
    assert facts.begins < now - timedelta(minutes=59)
    assert [facts.is_due(now + timedelta(days=days)) for days in (0, 59, 61, 100)] == [False, False, True, True]
    assert to_pem(to_der(identity.certificate)) == identity.certificate


def test_certificates_of_one_key_and_name_differ() -> None:
    key = public_key_of(site("alpha").certificate)
    made = {facts_of(issue_site(AUTHORITY, "alpha", key, timedelta(days=1))).serial for _ in range(5)}
    assert len(made) == 5


def test_request_says_name_and_key_and_holds_no_private_one() -> None:
    key = make_key()
    der = make_request(key, "alpha")
    request = read_request(der)
    assert (request.name, request.key_sha256) == ("alpha", key_sha256(key))
    private = serialization.load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.private_numbers().private_value.to_bytes(32, "big") not in der


def _foreign_request(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alpha")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


SOUND = make_request(make_key(), "alpha")
UNFIT = {
    "nothing": b"",
    "noise": b"\x30\x82" + bytes(200),
    "cut": SOUND[:-10],
    "too long": SOUND + bytes(5_000),
    "signed by nobody": SOUND[:-3] + bytes(3),
    "of RSA": _foreign_request(rsa.generate_private_key(65_537, 2_048)),
    "of P-384": _foreign_request(ec.generate_private_key(ec.SECP384R1())),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_request_that_cannot_be_used_is_a_value_error(kind: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_request(UNFIT[kind])


def test_authorities_have_names_of_their_own() -> None:
    assert facts_of(make_authority().certificate).name != facts_of(AUTHORITY.certificate).name
    assert not is_issued_by(site("alpha", OTHER).certificate, AUTHORITY.certificate)
    assert not is_issued_by(b"no certificate", AUTHORITY.certificate)


def test_strict_verification_of_openssl_accepts_the_server() -> None:
    context = ssl.create_default_context(cadata=AUTHORITY.certificate.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with listening(SERVER) as address:
        host, _, port = address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), 10) as plain,
            context.wrap_socket(plain, server_hostname="fl.example.org") as secured,
        ):
            assert secured.version() in ("TLSv1.2", "TLSv1.3")


changes = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6)


@given(changes=changes)
def test_damaged_request_or_certificate_is_a_value_error_or_read(changes: list[tuple[int, int]]) -> None:
    readers = ((SOUND, read_request), (to_der(SERVER.certificate), lambda der: facts_of(to_pem(der))))
    for sound, reader in readers:
        damaged = bytearray(sound)
        for place, value in changes:
            damaged[place % len(damaged)] = value
        with contextlib.suppress(ValueError):
            reader(bytes(damaged))
