"""The join token: one line of text that a coordinator gives to one site, with all that the site needs to join.

It is `fsj1_` and base64url (without `=`) of: 8 bytes that name the invitation, 16 bytes of secret, the 32 bytes of the
fingerprint of the server's certificate, then in UTF-8, with line feeds between them, the site's name, the server's
address and the address of its enrolment (only `:PORT` where the host is the same), and the first 4 bytes of the sha256
of all that, so that a token that was cut or mistyped is noticed before anything is sent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field

from fedstream import limits
from fedstream.tls import shown_address, split_address

PREFIX = "fsj1_"
TOKEN_ID_BYTES = 8
SECRET_BYTES = 16
"""128 bits: with ten tries for each invitation, and a bound on tries for each address, nobody guesses one."""

_FINGERPRINT_BYTES, _CHECK_BYTES = 32, 4
_MAX_TEXT_BYTES = 2_048


@dataclass(frozen=True, slots=True)
class JoinToken:
    """An invitation of one site.

    `server` and `enrolment` are HOST:PORT; `fingerprint` is that of the certificate both are served with.
    """

    token_id: bytes
    secret: bytes = field(repr=False)  # what is printed or logged may be read by anybody
    fingerprint: str
    name: str
    server: str
    enrolment: str

    def encode(self) -> str:
        """The token as text."""
        (host, _), (other_host, port) = split_address(self.server), split_address(self.enrolment)
        enrolment = f":{port}" if host == other_host else self.enrolment
        pinned = bytes.fromhex(self.fingerprint.removeprefix("sha256:"))
        text = f"{self.name}\n{self.server}\n{enrolment}".encode()
        contents = self.token_id + self.secret + pinned + text
        packed = base64.urlsafe_b64encode(contents + _check_of(contents))
        return PREFIX + packed.decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> JoinToken:
        """The token that `text` is; white space around or in it does not count.

        Raises:
            ValueError: it is none; the message does not hold any part of it.
        """
        contents = _unpack("".join(text.split()))
        place = TOKEN_ID_BYTES + SECRET_BYTES + _FINGERPRINT_BYTES
        try:
            name, server, enrolment = contents[place:].decode().split("\n")
            host, _ = split_address(server)
            if enrolment.startswith(":"):
                enrolment = shown_address(host, split_address(f"host{enrolment}")[1])
            split_address(enrolment)
        except ValueError as error:  # also of bytes that are no text
            raise ValueError("the token names no server") from error
        if not limits.is_client_name(name):
            raise ValueError("the token names no site")
        secret = contents[TOKEN_ID_BYTES : TOKEN_ID_BYTES + SECRET_BYTES]
        fingerprint = f"sha256:{contents[TOKEN_ID_BYTES + SECRET_BYTES : place].hex()}"
        return cls(contents[:TOKEN_ID_BYTES], secret, fingerprint, name, server, enrolment)


def make_secret() -> tuple[bytes, bytes]:
    """A new invitation's name and its secret."""
    return secrets.token_bytes(TOKEN_ID_BYTES), secrets.token_bytes(SECRET_BYTES)


def hash_of(secret: bytes) -> bytes:
    """What is stored of a secret. It is random and long, so a plain sha256 cannot be turned back by trying."""
    return hashlib.sha256(b"fedstream join secret\n" + secret).digest()


def _unpack(text: str) -> bytes:
    if not text.startswith(PREFIX) or len(text) > _MAX_TEXT_BYTES:
        raise ValueError(f"this is no join token: one begins with {PREFIX}, as `fedserver invite` prints it")
    packed = text.removeprefix(PREFIX)
    try:
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the join token is damaged: copy it again, whole") from error
    contents, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if len(contents) <= TOKEN_ID_BYTES + SECRET_BYTES + _FINGERPRINT_BYTES or check != _check_of(contents):
        raise ValueError("the join token is damaged: copy it again, whole")
    return contents


def _check_of(contents: bytes) -> bytes:
    return hashlib.sha256(contents).digest()[:_CHECK_BYTES]
