"""Transport security: the server's certificate, and trust in it by its fingerprint.

A fingerprint is the sha256 of a certificate's DER form, written `sha256:` and 64 hexadecimal digits. Python's gRPC has
no hook to check a peer's certificate, so a client fetches the certificate first, compares its fingerprint, and then
gives gRPC just this certificate as its only root: the connection that carries weights trusts nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedstream.errors import FedstreamError, TransportError

SERVER_NAME = "fedstream-server"
"""A name that every self-made server certificate carries, whatever address the server is reached by."""

_VALIDITY = timedelta(days=397)
_CONNECT_TIMEOUT_SECONDS = 10.0


class FingerprintMismatch(FedstreamError):
    """The server at the address has another certificate than the one the fingerprint names."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key and its certificate, both PEM."""

    key: bytes = field(repr=False)  # what is printed or logged may be read by anybody
    certificate: bytes


def make_self_signed(hosts: Iterable[str]) -> Identity:
    """A new P-256 key and a certificate for `hosts` (names or addresses), signed by itself, valid for 397 days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    names = dict.fromkeys([SERVER_NAME, "localhost", "127.0.0.1", "::1", *hosts])
    alternatives = [_general_name(host) for host in names]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # a site's clock may be a little behind
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Identity(private, certificate.public_bytes(serialization.Encoding.PEM))


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def fingerprint(certificate: bytes) -> str:
    """The fingerprint of a PEM certificate."""
    return _fingerprint_of_der(ssl.PEM_cert_to_DER_cert(certificate.decode()))


def _fingerprint_of_der(der: bytes) -> str:
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def fetch_certificate(address: str, expected: str) -> bytes:
    """The server's certificate, PEM, if its fingerprint is `expected`. Blocks for at most 10 s.

    Raises:
        TransportError: nothing answers at the address, or not with TLS.
        FingerprintMismatch: it is another certificate.
        ValueError: `address` is none.
    """
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # trust is decided below, by the fingerprint
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=SERVER_NAME) as secured,
        ):
            der = secured.getpeercert(binary_form=True) or b""
    except ssl.SSLError as error:
        raise TransportError(f"{address} does not speak TLS ({error.reason}); is it the right port?") from error
    except (OSError, UnicodeError) as error:  # the latter for a host that no name can be
        raise TransportError(f"cannot reach {address} ({error}); is the server running and the port open?") from error
    actual = _fingerprint_of_der(der)
    if not hmac.compare_digest(actual.encode(), expected.strip().lower().encode()):
        message = (
            f"the server at {address} has the certificate {actual}, not {expected}: it is another server, or somebody "
            "is in between. Ask the coordinator for the current join command."
        )
        raise FingerprintMismatch(message)
    return ssl.DER_cert_to_PEM_cert(der).encode()


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a server shows of itself before it is known whether to trust it.

    `certificate` is PEM; `version` is of TLS; `protocol` is that within, `h2` for gRPC, `None` if none was agreed on.
    """

    certificate: bytes
    version: str
    protocol: str | None


def look_at(address: str) -> Handshake:
    """Shake hands with whoever is at the address, for a look: nothing is sent, nothing is trusted. Blocks up to 10 s.

    Raises:
        OSError: nothing answers, or not with TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(split_address(address), timeout=_CONNECT_TIMEOUT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=SERVER_NAME) as secured,
    ):
        der = secured.getpeercert(binary_form=True) or b""
        certificate = ssl.DER_cert_to_PEM_cert(der).encode()
        return Handshake(certificate, secured.version() or "TLS", secured.selected_alpn_protocol())


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Credentials for a listening port."""
    return grpc.ssl_server_credentials([(identity.key, identity.certificate)])


def channel_credentials(certificate: bytes) -> grpc.ChannelCredentials:
    """Credentials that trust exactly this certificate; use with `CHANNEL_OPTIONS`."""
    return grpc.ssl_channel_credentials(root_certificates=certificate)


CHANNEL_OPTIONS = (("grpc.ssl_target_name_override", SERVER_NAME),)
"""Which name to look for in a certificate that was trusted by its fingerprint, whatever address was dialled."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[V6ADDRESS]:PORT`.

    Raises:
        ValueError: it is neither.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"{address!r} is no address; write HOST:PORT, such as fl.example.org:8443")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
