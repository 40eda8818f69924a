"""Transport security: the server's certificate, and trust in it by its fingerprint or by who signed it.

A fingerprint is the sha256 of a certificate's DER form, written `sha256:` and 64 hexadecimal digits. Python's gRPC has
no hook to check a peer's certificate, so a client looks at the certificate first, compares its fingerprint, and then
gives gRPC just this certificate as its only root: the connection that carries weights trusts nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509

from fedstream.errors import FedstreamError, TransportError

SERVER_NAME = "fedstream-server"
"""A name that every certificate of a server carries, whatever address the server is reached by."""

_CONNECT_TIMEOUT_SECONDS = 10.0
_ANSWER_SECONDS = 2.0
_LAST_PORT = 65_535
_NOT_YET_VALID, _EXPIRED = 9, 10
"""OpenSSL's codes: `X509_V_ERR_CERT_NOT_YET_VALID` and `X509_V_ERR_CERT_HAS_EXPIRED`."""
_DNS_CHARACTERS = re.compile(r"[A-Za-z0-9._-]+")
"""With the underline, which no host's name should have and some have."""
_WHATEVER_THE_TIME = 0x200000
"""OpenSSL's `X509_V_FLAG_NO_CHECK_TIME`, which Python has no name for."""


class UntrustedServer(FedstreamError):
    """The server at the address is not the one that was named."""


class FingerprintMismatch(UntrustedServer):
    """The server at the address has another certificate than the one the fingerprint names."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key and its certificate, both PEM."""

    key: bytes = field(repr=False)  # what is printed or logged may be read by anybody
    certificate: bytes


def fingerprint(certificate: bytes) -> str:
    """The fingerprint of a PEM certificate."""
    return f"sha256:{hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).hexdigest()}"


class HungUp(TransportError):
    """The server ended the connection right after the handshake: it wants a certificate, or is just being stopped."""


def fetch_certificate(address: str, expected: str) -> bytes:
    """The server's certificate, PEM, if its fingerprint is `expected`. Blocks for at most 10 s.

    Raises:
        TransportError: nothing answers at the address, or not with TLS, or it hangs up, as it does where it wants a
            certificate; or it is not valid yet, by this machine's clock.
        FingerprintMismatch: it is another certificate.
        UntrustedServer: it is not valid any more, by this machine's clock.
        ValueError: `address` is none.
    """
    try:
        shown = _shake_hands(address, _trusting_nobody())
    except (OSError, UnicodeError) as error:  # the latter for a host that no name can be
        raise _unreachable(address, error) from error
    actual = fingerprint(shown.certificate)
    if not hmac.compare_digest(actual.encode(), expected.strip().lower().encode()):
        message = (
            f"the server at {address} has the certificate {actual}, not {expected}: it is another server, or somebody "
            "is in between. Ask the coordinator for the current join command."
        )
        raise FingerprintMismatch(message)
    _require_its_time(address, shown.certificate)
    if shown.hung_up:  # which a server that is just being stopped does too, so that it is worth coming back
        raise HungUp(
            f"{address} hung up after the handshake; if it goes on doing so, it takes only sites with a certificate: "
            "ask the coordinator for an invitation, run `fedclient join`, and leave --fingerprint out"
        )
    return shown.certificate


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a server shows of itself before it is known whether to trust it.

    `certificate` is PEM; `version` is of TLS; `protocol` is that within, `h2` for gRPC, `None` if none was agreed on;
    `hung_up` is whether it ended the connection then, as a server does that wants a certificate and was shown none.
    """

    certificate: bytes
    version: str
    protocol: str | None
    hung_up: bool


def look_at(address: str) -> Handshake:
    """Shake hands with whoever is at the address, for a look: nothing is sent, nothing is trusted. Blocks up to 10 s.

    Raises:
        OSError: nothing answers, or not with TLS.
    """
    return _shake_hands(address, _trusting_nobody())


def look_at_as_member(address: str, authority: bytes, key: Path, certificate: Path) -> Handshake:
    """As `look_at`, and shows the site's own certificate to a server of this authority (PEM), and to no other.

    Raises:
        ssl.SSLCertVerificationError: it is another server, and was shown nothing.
        OSError: nothing answers, or not with TLS.
    """
    return _shake_hands(address, _of_member(authority, key, certificate))


def server_credentials(identity: Identity, client_roots: bytes | None = None) -> grpc.ServerCredentials:
    """Credentials for a listening port.

    Args:
        identity: the server's.
        client_roots: authorities, PEM, one of which must have signed the certificate that every client shows; `None`
            to ask for no certificate.
    """
    pair = [(identity.key, identity.certificate)]
    if client_roots is None:
        return grpc.ssl_server_credentials(pair)
    return grpc.ssl_server_credentials(pair, root_certificates=client_roots, require_client_auth=True)


def channel_credentials(certificate: bytes, identity: Identity | None = None) -> grpc.ChannelCredentials:
    """Credentials that trust exactly this certificate, or those that it signed; use with `CHANNEL_OPTIONS`.

    Args:
        certificate: PEM.
        identity: what this end shows of itself, if anything.
    """
    if identity is None:
        return grpc.ssl_channel_credentials(root_certificates=certificate)
    return grpc.ssl_channel_credentials(certificate, identity.key, identity.certificate)


def check_server(address: str, authority: bytes, key: Path, certificate: Path) -> None:
    """See that the server at `address` has a certificate of this authority (PEM). Blocks for at most 12 s.

    gRPC could only say that a handshake failed, and would try for ever. The site's own certificate is shown (by its
    files: Python's TLS takes nothing else), or each look would be a failed handshake in the server's log.

    Raises:
        TransportError: nothing answers at the address, or not with TLS, or it does not take the certificate; or the
            server's is not valid yet, by this machine's clock.
        UntrustedServer: it is another server, or its certificate is not valid any more, by this machine's clock.
        ValueError: `address` is none.
    """
    context = _of_member(authority, key, certificate)  # not within: files that are damaged are no fault of the line
    try:
        shown = _shake_hands_at_its_time(address, context, authority)
    except ssl.SSLCertVerificationError as error:
        message = (
            f"the server at {address} has no certificate of this federation's authority ({error.verify_message}): "
            "it is another server, or somebody is in between. Ask the coordinator"
        )
        raise UntrustedServer(message) from error
    except (OSError, UnicodeError) as error:
        raise _unreachable(address, error) from error
    if shown.hung_up:  # as one that is just being stopped does too
        raise TransportError(
            f"{address} hung up after the handshake; if it goes on doing so, it does not take this site's certificate: "
            "ask the coordinator"
        )


def _of_member(authority: bytes, key: Path, certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.decode())
    context.load_cert_chain(certificate, key)
    return context


def _shake_hands_at_its_time(address: str, context: ssl.SSLContext, authority: bytes) -> Handshake:
    """As `_shake_hands`. Where dates alone are in the way, it is the server that was meant, and they are what is told.

    Raises:
        TransportError, UntrustedServer: as `_require_its_time`.
    """
    try:
        return _shake_hands(address, context)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code not in (_NOT_YET_VALID, _EXPIRED):
            raise
        context.verify_flags |= _WHATEVER_THE_TIME  # or anybody with an old certificate would be told to be the server
        shown = _shake_hands(address, context)
        for one in (shown.certificate, authority):
            _require_its_time(address, one)
        raise


def _require_its_time(address: str, certificate: bytes) -> None:
    """See that a certificate, PEM, is valid now, as far as this machine knows what time it is.

    Raises:
        TransportError: it is not yet. Clocks that were never set are set when there is a network, so it may pass.
        UntrustedServer: it is not any more.
    """
    found, now = x509.load_pem_x509_certificate(certificate), datetime.now(UTC)
    begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    span = f"{begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC"
    words = f"{address} has a certificate for {span}, and this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
    if now < begins:
        raise TransportError(f"{words}: set this machine's clock, or, if it is right, tell the coordinator")
    if now > ends:
        raise UntrustedServer(
            f"{words}: set this machine's clock, or, if it is right, ask the coordinator for a new certificate."
        )


def _trusting_nobody() -> ssl.SSLContext:
    """For a handshake whose outcome says nothing: what the server shows is judged by whoever looks at it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _shake_hands(address: str, context: ssl.SSLContext) -> Handshake:
    host, port = split_address(address)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=SERVER_NAME) as secured,
    ):
        der = secured.getpeercert(binary_form=True) or b""
        certificate = ssl.DER_cert_to_PEM_cert(der).encode()
        version, protocol = secured.version() or "TLS", secured.selected_alpn_protocol()
        return Handshake(certificate, version, protocol, _hangs_up(secured))


def _hangs_up(secured: ssl.SSLSocket) -> bool:
    """With TLS 1.3 a server that misses a certificate ends the connection after the handshake; else HTTP/2 begins."""
    secured.settimeout(_ANSWER_SECONDS)
    try:
        return secured.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def _unreachable(address: str, error: Exception) -> TransportError:
    if isinstance(error, ssl.SSLError):
        return TransportError(f"{address} does not speak TLS ({error.reason}); is it the right port?")
    return TransportError(f"cannot reach {address} ({error}); is the server running and the port open?")


CHANNEL_OPTIONS = (("grpc.ssl_target_name_override", SERVER_NAME),)
"""Which name to look for in a certificate that was trusted by its fingerprint, whatever address was dialled."""


def options_to(address: str) -> tuple[tuple[str, int], ...]:
    """More options for a channel to this address: no proxy of the environment leads to this very machine."""
    return (("grpc.enable_http_proxy", 0),) if is_loopback(split_address(address)[0]) else ()


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[V6ADDRESS]:PORT`.

    Raises:
        ValueError: it is neither.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError(f"{address!r} is no address; write HOST:PORT, such as fl.example.org:8443")
    if int(port) > _LAST_PORT:
        raise ValueError(f"{address!r} is no address; ports go up to {_LAST_PORT}")
    if ":" in host and not address.startswith("["):
        raise ValueError(f"{address!r} is no address; write an IPv6 address in brackets, such as [::1]:8443")
    return host, int(port)


def shown_address(host: str, port: int) -> str:
    """`HOST:PORT`, or `[V6ADDRESS]:PORT`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ascii_host(host: str) -> str:
    """A name or address as DNS and certificates have it: of `klinik-münchen.de`, `xn--klinik-mnchen-3ob.de`.

    Raises:
        ValueError: it can be neither.
    """
    try:
        ascii_name = host.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError(f"{host!r} can be no name of a machine ({error})") from error
    if not ascii_name:
        raise ValueError("the name of a machine is empty")
    if not _DNS_CHARACTERS.fullmatch(ascii_name) and not _is_address(ascii_name):
        raise ValueError(
            f"{host!r} is no name of a machine: write the name or address alone, without https:// and without a port, "
            "such as fl.example.org"
        )
    return ascii_name


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
