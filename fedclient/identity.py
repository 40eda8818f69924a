"""A site's identity: its private key, its certificate, and whom it trusts, in one folder.

    site.key        the private key, PEM; made here, before anything is sent, and never sent
    site.crt        the site's certificate, PEM
    authority.crt   the federation's authority, PEM: servers that it signed are trusted, and nobody else
    identity.json   who this site is and where the server is; written last, so that without it nothing was joined

Every file is readable by its owner only, and replaced whole or not at all.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedclient.exit_codes import ExitCode, Stop
from fedstream import limits
from fedstream.certificates import CertificateFacts, facts_of, is_issued_by, key_sha256, make_key
from fedstream.files import FileSystem, RealFileSystem, write_durably
from fedstream.tls import Identity, split_address

KEY, CERTIFICATE, AUTHORITY, FACTS = "site.key", "site.crt", "authority.crt", "identity.json"


def default_identity_folder() -> Path:
    """`~/.local/state/fedstream/identity`, or below `XDG_STATE_HOME` where that is set.

    Raises:
        Stop: with `BAD_CONFIGURATION`, this user has no home folder.
    """
    return state_home("--identity") / "fedstream" / "identity"


def state_home(option: str) -> Path:
    """`~/.local/state`, or `XDG_STATE_HOME` where that is set; `option` names another folder than what is below it.

    Raises:
        Stop: with `BAD_CONFIGURATION`, this user has no home folder, as where a container sets only a user's number.
    """
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError as error:
        message = f"this user has no home folder to keep things in: name a folder with {option}, or set HOME"
        raise Stop(ExitCode.BAD_CONFIGURATION, message) from error


@dataclass(frozen=True, slots=True)
class Membership:
    """Who this site is, and where its server is, HOST:PORT."""

    name: str
    server: str


class IdentityFolder:
    """The folder.

    Args:
        folder: made when something is kept.
        files: the file system.
    """

    def __init__(self, folder: Path, files: FileSystem | None = None) -> None:
        self.folder, self._files = folder, files or RealFileSystem()

    def membership(self) -> Membership | None:
        """What was joined; `None` if nothing was.

        Raises:
            Stop: with `BAD_CONFIGURATION`, the folder is damaged or cannot be read.
        """
        path = self.folder / FACTS
        try:
            if not path.exists():
                return None
            fields: Any = json.loads(path.read_text(encoding="utf-8"))
            found = Membership(str(fields["name"]), str(fields["server"]))
            split_address(found.server)
            if not limits.is_client_name(found.name):
                raise ValueError("it names no site")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Stop(
                ExitCode.BAD_CONFIGURATION, f"{path} cannot be used ({error}): join again, or give the right --identity"
            ) from error
        return found

    def key(self) -> bytes:
        """The site's private key, PEM: the one there is, or a new one, kept before it is told.

        Raises:
            OSError: it cannot be kept.
            Stop: with `BAD_CONFIGURATION`, the one there is is damaged.
        """
        path = self.folder / KEY
        if path.exists():
            return _read(path, is_key=True, advice=self._advice)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = make_key()
        write_durably(self._files, path, [made])
        return made

    def keep(self, membership: Membership, certificate: bytes, authority: bytes) -> None:
        """Keep what a server has given to this site.

        Raises:
            OSError: it cannot be kept; then nothing was joined, and joining again gives the same.
        """
        self.keep_certificate(certificate)
        write_durably(self._files, self.folder / AUTHORITY, [authority])
        write_durably(self._files, self.folder / FACTS, [json.dumps(asdict(membership), indent=2).encode()])

    def keep_certificate(self, certificate: bytes) -> None:
        """Put the next certificate in the place of the one there is."""
        write_durably(self._files, self.folder / CERTIFICATE, [certificate])

    def credentials(self) -> Credentials:
        """Key, certificate and authority as they are now.

        Raises:
            Stop: with `BAD_CONFIGURATION`, one of them cannot be used, or they do not belong together.
        """
        paths = self.folder / KEY, self.folder / CERTIFICATE, self.folder / AUTHORITY
        found = read_credentials(*paths, advice=self._advice)
        if not is_issued_by(found.identity.certificate, found.authority):  # the server would only hang up
            message = f"{self.folder / CERTIFICATE} is none of {self.folder / AUTHORITY}: one of them is damaged"
            raise Stop(ExitCode.BAD_CONFIGURATION, f"{message}{self._advice}")
        return found

    @property
    def _advice(self) -> str:
        """For the end of a message about a file that is damaged: none of them can be made again by itself."""
        return f". Remove {self.folder}, and join again with a new invitation"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a site shows, and whose signature it trusts; PEM. The files are where the first two stand."""

    identity: Identity
    authority: bytes
    key_file: Path
    certificate_file: Path

    @property
    def facts(self) -> CertificateFacts:
        """What the certificate says."""
        return facts_of(self.identity.certificate)

    def require_valid(self) -> None:
        """Check that the certificate has not expired: the server would only hang up.

        Raises:
            Stop: with `UNTRUSTED`, it has.
        """
        expires, now = self.facts.expires, datetime.now(UTC)
        if expires <= now:
            message = (
                f"this site's certificate has expired on {expires:%Y-%m-%d}, and this machine's clock says "
                f"{now:%Y-%m-%d %H:%M} UTC: set this machine's clock, or, if it is right, ask the coordinator for a "
                "new invitation"
            )
            raise Stop(ExitCode.UNTRUSTED, f"{message}, and join again with `fedclient join`")


def read_credentials(key: Path, certificate: Path, authority: Path, *, advice: str = "") -> Credentials:
    """Credentials of three files; `advice` is for the end of a message about what is damaged.

    Raises:
        Stop: with `BAD_CONFIGURATION`, one cannot be read, or key and certificate do not belong together.
    """
    found = {path: _read(path, is_key=path == key, advice=advice) for path in (key, certificate, authority)}
    if key_sha256(found[key]) != facts_of(found[certificate]).key_sha256:
        raise Stop(ExitCode.BAD_CONFIGURATION, f"{certificate} is not the certificate of the key {key}{advice}")
    return Credentials(Identity(found[key], found[certificate]), found[authority], key, certificate)


def _read(path: Path, *, is_key: bool, advice: str) -> bytes:
    """A key or a certificate, PEM.

    Raises:
        Stop: with `BAD_CONFIGURATION`, it cannot be read, or is none.
    """
    contents = b""
    try:
        contents = path.read_bytes()
        key_sha256(contents) if is_key else facts_of(contents)
    except (OSError, ValueError, TypeError) as error:
        why = _in_words(error, is_key, contents)
        more = "" if isinstance(error, PermissionError) else advice
        raise Stop(ExitCode.BAD_CONFIGURATION, f"{path} cannot be used: {why}{more}") from error
    return contents


def _in_words(error: Exception, is_key: bool, contents: bytes) -> str:
    """What is wrong with a file. `cryptography` would name its parser, and a page for developers."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if not contents.strip():
        return "it is empty"
    if isinstance(error, TypeError):
        return "its key is encrypted; only one without a password can be used"
    return "it holds no private key of P-256 in PEM" if is_key else "it holds no certificate in PEM"


def check_answer(name: str, key: bytes, certificate: bytes, authority: bytes) -> None:
    """Check that a certificate is what was asked for.

    Raises:
        ValueError: it is for another name or key, or of another authority.
    """
    facts = facts_of(certificate)
    if (facts.name, facts.key_sha256) != (name, key_sha256(key)) or not is_issued_by(certificate, authority):
        raise ValueError("the certificate that came is not the one that was asked for")
