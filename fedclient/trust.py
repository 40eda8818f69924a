"""Whom a client trusts and what it shows of itself: nothing on this machine, a fingerprint, or certificates."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Protocol

import grpc

from fedclient.config import ClientConfig
from fedclient.exit_codes import ExitCode, Stop
from fedclient.identity import Credentials, IdentityFolder, read_credentials
from fedstream import tls


class Trust(Protocol):
    """How a connection is made."""

    async def prepare(self, address: str) -> None:
        """See who answers, and get ready to connect. To be called before each session.

        gRPC could only say that a handshake failed, and would try for ever.

        Raises:
            TransportError: nobody answers.
            Stop: with `UNTRUSTED`, it is another server than the one that was named, or it will not take this client.
        """

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Of the next channel; `None` for plain text. To be called after `prepare`."""

    def anchor(self) -> str:
        """What a server is known by. One that is set up anew for another federation has another, but for plain text."""


class Plain:
    """No TLS: a server on this machine."""

    async def prepare(self, address: str) -> None:
        pass

    def credentials(self) -> grpc.ChannelCredentials | None:
        return None

    def anchor(self) -> str:
        return "plaintext"


class Pinned:
    """One certificate, named by its fingerprint; the client shows none.

    Args:
        fingerprint: of the server's certificate.
    """

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._certificate = b""

    async def prepare(self, address: str) -> None:
        try:
            self._certificate = await asyncio.to_thread(tls.fetch_certificate, address, self._fingerprint)
        except tls.UntrustedServer as error:
            raise Stop(ExitCode.UNTRUSTED, str(error)) from error

    def credentials(self) -> grpc.ChannelCredentials | None:
        return tls.channel_credentials(self._certificate)

    def anchor(self) -> str:
        return self._fingerprint.lower()


class Certified:
    """Servers that an authority signed; the client shows its own certificate.

    Args:
        config: says where the files are. They are read anew for each connection: they change when they are renewed.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._config = config

    def read(self) -> Credentials:
        """The credentials as they are now.

        Raises:
            Stop: with `BAD_CONFIGURATION`, a file cannot be used.
        """
        config = self._config
        if config.certificate is not None and config.key is not None and config.server_ca is not None:
            return read_credentials(config.key, config.certificate, config.server_ca)
        assert config.identity is not None, "the settings name a folder where they name no files"
        return IdentityFolder(config.identity).credentials()

    async def prepare(self, address: str) -> None:
        credentials = self.read()
        credentials.require_valid()
        try:
            files = credentials.key_file, credentials.certificate_file
            await asyncio.to_thread(tls.check_server, address, credentials.authority, *files)
        except tls.UntrustedServer as error:
            raise Stop(ExitCode.UNTRUSTED, str(error)) from error

    def credentials(self) -> grpc.ChannelCredentials | None:
        found = self.read()
        return tls.channel_credentials(found.authority, found.identity)

    def anchor(self) -> str:
        return f"authority {hashlib.sha256(self.read().authority).hexdigest()}"


def trust_of(config: ClientConfig) -> Trust:
    """What the settings say."""
    if config.plaintext:
        return Plain()
    return Pinned(config.fingerprint) if config.fingerprint is not None else Certified(config)
