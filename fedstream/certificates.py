"""Certificates of a federation: its own authority, the server's certificate, and those of its sites.

All keys are P-256. A server's certificate may not stand for a client and a site's not for a server (extended key
usage), so that no site can pass for the server towards another site. Every certificate begins an hour before it is
made: the other end's clock may be a little behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from fedstream.tls import SERVER_NAME, Identity

AUTHORITY_VALIDITY = timedelta(days=3_650)
SERVER_VALIDITY = timedelta(days=397)
_HEAD_START = timedelta(hours=1)

MAX_REQUEST_BYTES = 4_096
"""Of a certificate request in DER; one of a P-256 key takes about 250."""


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a certificate says. `fingerprint` is as in `fedstream.tls`, `key_sha256` that of the public key in DER."""

    name: str
    serial: str
    fingerprint: str
    key_sha256: str
    begins: datetime
    expires: datetime

    def is_due(self, now: datetime) -> bool:
        """Whether less than a third of the validity is left, so that it is time for the next certificate."""
        return self.expires - now < (self.expires - self.begins) / 3


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """A site's wish for a certificate: its name and its public key (DER), whose private half it has shown to have."""

    name: str
    public_key: bytes

    @property
    def key_sha256(self) -> str:
        """sha256 of the public key, in hexadecimal."""
        return hashlib.sha256(self.public_key).hexdigest()


def make_key() -> bytes:
    """A new private key, PEM."""
    return _private_pem(ec.generate_private_key(ec.SECP256R1()))


def make_authority() -> Identity:
    """A new authority. Its name is its own, so that two federations' authorities are never taken for one another."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"fedstream authority {secrets.token_hex(4)}")
    builder = _builder(name, name, key.public_key(), AUTHORITY_VALIDITY)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Identity(_private_pem(key), _pem(certificate))


def issue_server(authority: Identity, hosts: Iterable[str]) -> Identity:
    """A key and certificate for a server that is reached as `hosts` (names or addresses), valid for 397 days."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = dict.fromkeys([SERVER_NAME, "localhost", "127.0.0.1", "::1", *hosts])
    alternatives = x509.SubjectAlternativeName([_general_name(host) for host in names])
    purpose = ExtendedKeyUsageOID.SERVER_AUTH
    certificate = _issue(authority, SERVER_NAME, key.public_key(), SERVER_VALIDITY, purpose, alternatives)
    return Identity(_private_pem(key), certificate)


def issue_site(authority: Identity, name: str, public_key: bytes, validity: timedelta) -> bytes:
    """A certificate, PEM, that says that whoever has the private half of `public_key` (DER) is the site `name`."""
    key = serialization.load_der_public_key(public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("a site's key is one of P-256")
    return _issue(authority, name, key, validity, ExtendedKeyUsageOID.CLIENT_AUTH, None)


def _issue(
    authority: Identity,
    name: str,
    key: ec.EllipticCurvePublicKey,
    validity: timedelta,
    purpose: ObjectIdentifier,
    alternatives: x509.SubjectAlternativeName | None,
) -> bytes:
    issuer, signer = x509.load_pem_x509_certificate(authority.certificate), _load_key(authority.key)
    builder = (
        _builder(_name(name), issuer.subject, key, validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=False)
    return _pem(builder.sign(signer, hashes.SHA256()))


def make_request(key: bytes, name: str) -> bytes:
    """A certificate request, DER, for the site `name` with the private key `key` (PEM), which is not in it."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    return builder.sign(_load_key(key), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def read_request(der: bytes) -> CertificateRequest:
    """What a certificate request asks for. Of what it says, only its name and its key are looked at.

    Raises:
        ValueError: it is malformed, not signed by its own key, or of another kind of key than P-256.
    """
    if len(der) > MAX_REQUEST_BYTES:
        raise ValueError(f"it has {len(der)} bytes; at most {MAX_REQUEST_BYTES} are allowed")
    with _as_value_errors():
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
            raise ValueError("its key is none of P-256")
        if not request.is_signature_valid:
            raise ValueError("it is not signed by its own key")
        return CertificateRequest(_common_name(request.subject), _public_der(key))


def key_sha256(key: bytes) -> str:
    """sha256 of the public half of a private key (PEM), in hexadecimal."""
    return hashlib.sha256(_public_der(_load_key(key).public_key())).hexdigest()


def public_key_of(certificate: bytes) -> bytes:
    """The public key, DER, of a PEM certificate."""
    return _public_der(x509.load_pem_x509_certificate(certificate).public_key())


def facts_of(certificate: bytes) -> CertificateFacts:
    """What a PEM certificate says; of several in a row, the first.

    Raises:
        ValueError: it is none.
    """
    with _as_value_errors():
        parsed = x509.load_pem_x509_certificate(certificate)
        return CertificateFacts(
            name=_common_name(parsed.subject),
            serial=f"{parsed.serial_number:x}",
            fingerprint=f"sha256:{parsed.fingerprint(hashes.SHA256()).hex()}",
            key_sha256=hashlib.sha256(_public_der(parsed.public_key())).hexdigest(),
            begins=parsed.not_valid_before_utc,
            expires=parsed.not_valid_after_utc,
        )


def is_issued_by(certificate: bytes, authority: bytes) -> bool:
    """Whether the authority with that certificate signed the other one; both PEM."""
    try:
        with _as_value_errors():
            issuer = x509.load_pem_x509_certificate(authority)
            x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(issuer)
    except (ValueError, InvalidSignature):
        return False
    return True


def to_der(certificate: bytes) -> bytes:
    """A PEM certificate in DER form."""
    return x509.load_pem_x509_certificate(certificate).public_bytes(serialization.Encoding.DER)


def to_pem(certificate: bytes) -> bytes:
    """A DER certificate in PEM form.

    Raises:
        ValueError: it is none.
    """
    with _as_value_errors():
        return _pem(x509.load_der_x509_certificate(certificate))


@contextlib.contextmanager
def _as_value_errors() -> Iterator[None]:
    """What is read may be anybody's noise, and `cryptography` has several errors for that."""
    try:
        yield
    except (UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension, TypeError) as error:
        raise ValueError(f"it is of an unknown kind ({error})") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, validity: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _HEAD_START)
        .not_valid_after(now + validity)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the private key is none of P-256")
    return key


def _public_der(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
