"""From the server's name to a connection that can be trusted, one step at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from datetime import UTC, datetime

from fedclient.calls import plain_words
from fedclient.config import ClientConfig
from fedclient.doctor.scene import Scene
from fedclient.exit_codes import Stop
from fedclient.proxies import goes_through, proxy_variable
from fedclient.trust import Certified, trust_of
from fedstream import tls
from fedstream.checkup.certificate import judge_clock, judge_name, judge_validity
from fedstream.checkup.runner import Result, failed, ok, warning
from fedstream.errors import PermissionDenied, ProtocolError, TransportError, Unauthenticated
from fedstream.limits import PROTOCOL_VERSION

_CONNECT_SECONDS = 10.0
_RENEWAL = "Ask the coordinator to restart the server: it makes the next one by itself"
_TOO_EARLY = "Set the clock of this machine; if it is right, tell the coordinator"
_RENEWS_ITSELF = "Run `fedclient run`: it renews the certificate as soon as it reaches the server"


async def resolve(scene: Scene) -> Result:
    """The server's name has an address."""
    host, port = tls.split_address(scene.config.server)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        advice = "Check the spelling of --server and this machine's DNS, or write the server's address as a number"
        return failed(f"{host} has no address ({error})", advice)
    return ok(f"{host} is {', '.join(dict.fromkeys(str(one[4][0]) for one in found))}")


def proxy(scene: Scene) -> Result:
    """No proxy comes in between: gRPC obeys the environment, the check of the certificate dials directly."""
    host, _ = tls.split_address(scene.config.server)
    name = proxy_variable()
    if name is None:
        return ok("none is set in the environment")
    if not goes_through(host):
        return ok(f"{name} is set, but not for {host}")
    advice = f"If the server can be reached directly, add {host} to no_proxy; else see docs/operating.md on proxies"
    return warning(f"{name} is set, and gRPC goes by it", advice)


async def connect(scene: Scene) -> Result:
    """Something listens at the port."""
    host, port = tls.split_address(scene.config.server)
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except TimeoutError:
        advice = "A firewall on the way drops the packets: ask for outbound TCP to this address and port"
        return failed(f"no answer from {scene.config.server} in {_CONNECT_SECONDS:.0f} s", advice)
    except OSError as error:
        advice = "Check the port, and with the coordinator whether the server runs and is reachable from outside"
        return failed(f"{scene.config.server} cannot be reached ({_words(error)})", advice)
    return ok(f"{scene.config.server} answers")


def _words(error: OSError) -> str:
    """`Connection refused`: asyncio writes its own words over those of the system."""
    return os.strerror(error.errno) if error.errno else str(error)


async def handshake(scene: Scene) -> Result:
    """It speaks TLS, and HTTP/2 within; whether it is to be trusted is asked next."""
    try:
        shown = await asyncio.to_thread(_look, scene.config)
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        advice = "Check the port; a server without TLS wants --plaintext, and runs on this machine only"
        return failed(f"{scene.config.server} does not speak TLS ({reason})", advice)
    scene.certificate = shown.certificate
    if shown.protocol != "h2":
        advice = "A proxy on the way speaks an older HTTP: ask for an exception that lets TLS pass through"
        return failed(f"{shown.version}, but without HTTP/2, which gRPC needs", advice)
    return ok(f"{shown.version} with HTTP/2")


def _look(config: ClientConfig) -> tls.Handshake:
    # A look without the site's certificate would be a refused handshake in the server's audit log.
    trust = trust_of(config)
    if isinstance(trust, Certified):
        with contextlib.suppress(Stop, ssl.SSLCertVerificationError):  # later checks say what is wrong with either
            own = trust.read()
            files = own.key_file, own.certificate_file
            return tls.look_at_as_member(config.server, own.authority, *files)
    return tls.look_at(config.server)


def site_certificate(scene: Scene) -> Result:
    """What this site shows of itself belongs together, and has not ended."""
    trust = trust_of(scene.config)
    if not isinstance(trust, Certified):
        return ok("none is shown: this federation takes a site at its word")
    try:
        shown = trust.read()
    except Stop as stop:
        return failed(stop.message, "Give the right --identity, or ask for a new invitation and run `fedclient join`")
    now = datetime.now(UTC)
    advice = _RENEWS_ITSELF if shown.facts.expires > now else "Ask for a new invitation, and run `fedclient join`"
    judged = judge_validity(shown.identity.certificate, now, advice)
    return Result(judged.verdict, f"{shown.facts.name}: {judged.found}", judged.advice)


async def trust(scene: Scene) -> Result:
    """It is the server that was named: judged by the very connection that `fedclient run` would use."""
    try:
        await scene.connection.open()
    except Stop as stop:
        return failed(stop.message.rstrip("."), "Until that is cleared up, do not take part")
    except TransportError as error:
        return failed(plain_words(error), "Try again; if it stays, tell the coordinator")
    assert scene.certificate is not None
    return ok(f"the server is the one that was named, {tls.fingerprint(scene.certificate)}")


def certificate_name(scene: Scene) -> Result:
    """Its certificate carries the name that clients look for."""
    assert scene.certificate is not None
    return judge_name(scene.certificate)


def certificate_dates(scene: Scene) -> Result:
    """Its certificate has not ended, and does not end soon."""
    assert scene.certificate is not None
    return judge_validity(scene.certificate, datetime.now(UTC), _RENEWAL, _TOO_EARLY)


def admission(scene: Scene) -> Result:
    """The server lets this site in."""
    if scene.refusal:
        return failed(scene.refusal, "Ask the coordinator: the site may have been revoked, or its certificate replaced")
    return ok("the server takes this site")


def clock(scene: Scene) -> Result:
    """What the server's clock, or else its certificate, tells of this machine's."""
    return judge_clock(scene.certificate, datetime.now(UTC), scene.clock_ahead_seconds)


async def protocol(scene: Scene) -> Result:
    """The server answers gRPC, and speaks the version of the protocol that this client speaks."""
    try:
        await scene.connection.open()
        asked = time.time()
        scene.federation = federation = await scene.connection.describe()
        answered = time.time()
    except (Unauthenticated, PermissionDenied) as error:
        scene.refusal = error.message
        return ok("the server answers")
    except (TransportError, ProtocolError) as error:
        advice = "Try again; if it stays, check the port, and that no proxy on the way cuts HTTP/2"
        return failed(plain_words(error), advice)
    if federation.server_time is not None:  # it said so at some instant in between
        scene.clock_ahead_seconds = (asked + answered) / 2 - federation.server_time
    low, high = federation.protocol
    if low <= PROTOCOL_VERSION <= high:
        return ok(f"version {PROTOCOL_VERSION}; the server speaks {low} to {high}")
    side = "this client" if high > PROTOCOL_VERSION else "the server"
    return failed(f"version {PROTOCOL_VERSION} here, {low} to {high} there", f"Upgrade fedstream: {side} is the older")
