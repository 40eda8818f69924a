"""The minimal client as a member: it joins with a token, and shows its certificate. And the same with one rule broken.

python -m tests.support.minimal.member join --token T --identity DIR
python -m tests.support.minimal.member run --identity DIR --data D --state S --out O
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import ssl
import time
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedstream.v1 import enrolment_pb2, enrolment_pb2_grpc
from tests.support.minimal.client import Client

NAMED = [("grpc.ssl_target_name_override", "fedstream-server")]
PEM = serialization.Encoding.PEM
PLAIN = serialization.NoEncryption()


def parts_of(token: str) -> tuple[bytes, bytes, str, str, str, str]:
    """Invitation, secret, fingerprint, name, server and enrolment of a token."""
    text = token.removeprefix("fsj1_")
    contents = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    name, server, enrolment = contents[56:-4].decode().split("\n")
    enrolment = server.rsplit(":", 1)[0] + enrolment if enrolment.startswith(":") else enrolment
    return contents[:8], contents[8:24], contents[24:56].hex(), name, server, enrolment


def key_in(folder: Path, *, anew: bool) -> ec.EllipticCurvePrivateKey:
    """The site's key, which is kept before anything is sent."""
    path = folder / "key.pem"
    if path.exists() and not anew:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key
    made = ec.generate_private_key(ec.SECP256R1())
    path.touch(mode=0o600)
    path.write_bytes(made.private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN))
    return made


def join(token: str, folder: Path, wrong: str) -> int:
    """Join; returns the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    token_id, secret, pinned, name, server, enrolment = parts_of(token)
    host, port = enrolment.rsplit(":", 1)
    shown = ssl.get_server_certificate((host, int(port)))
    if hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown)).hexdigest() != pinned and wrong != "trusts any server":
        print("this is another server than the token names; nothing was sent to it")
        return 6
    key = key_in(folder, anew=wrong == "makes a key each time")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    asked = enrolment_pb2.EnrolRequest(
        client_name=name,
        token_id=token_id,
        token_secret=bytes(16) if wrong == "sends no secret" else secret,
        certificate_request=request.public_bytes(serialization.Encoding.DER),
    )
    with grpc.secure_channel(enrolment, grpc.ssl_channel_credentials(shown.encode()), NAMED) as channel:
        try:
            answer = enrolment_pb2_grpc.EnrolmentServiceStub(channel).Enrol(asked, timeout=30)
        except grpc.RpcError as error:
            print(error)
            return 5
    certificate, authority = (x509.load_der_x509_certificate(der) for der in (answer.certificate, answer.authority))
    if wrong != "takes any certificate" and not is_ours(certificate, authority, name, key):
        print("the certificate that came is not this site's")
        return 6
    (folder / "site.pem").write_bytes(certificate.public_bytes(PEM))
    (folder / "authority.pem").write_bytes(authority.public_bytes(PEM))
    (folder / "site.json").write_text(json.dumps({"name": name, "server": server}))
    return 0


def is_ours(
    certificate: x509.Certificate, authority: x509.Certificate, name: str, key: ec.EllipticCurvePrivateKey
) -> bool:
    """Whether it is for the name and the key, and signed by the authority."""
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        return False
    [common] = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return common.value == name and certificate.public_key() == key.public_key()


class Member(Client):
    """The client over mutual TLS."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder = Path(options.identity)
        facts = json.loads((self.folder / "site.json").read_text())
        options.name, options.server = facts["name"], facts["server"]
        super().__init__(options)

    def channel(self) -> grpc.Channel:
        key, site, authority = ((self.folder / name).read_bytes() for name in ("key.pem", "site.pem", "authority.pem"))
        if self.options.wrong == "talks to any server":
            host, port = self.options.server.rsplit(":", 1)
            authority = ssl.get_server_certificate((host, int(port))).encode()
        credentials = grpc.ssl_channel_credentials(authority, key, site)
        return grpc.secure_channel(self.options.server, credentials, NAMED)


WRONG = {
    "trusts any server": ("R-JOIN-2", "does not name"),
    "sends no secret": ("R-JOIN-3", "answer that is lost"),
    "takes any certificate": ("R-JOIN-5", "given a certificate for another key"),
    "talks to any server": ("R-CON-3", "server of another authority"),
    "makes a key each time": ("R-JOIN-3", "answer that is lost"),
}
"""Rule and scene of each."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["join", "run"])
    for name in ("token", "identity", "data", "state", "out", "wrong"):
        parser.add_argument(f"--{name}", default="")
    options = parser.parse_args()
    if options.what == "join":
        return join(options.token, Path(options.identity), options.wrong)
    while True:
        try:
            return Member(options).run()
        except OSError:
            time.sleep(1)


if __name__ == "__main__":
    raise SystemExit(main())
