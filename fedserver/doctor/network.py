"""The port that sites dial, and the names under which they find it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from typing import Any

import grpc

from fedserver.addresses import beyond_loopback, enrolment_listen
from fedserver.config import ServerConfig
from fedserver.store import StateError
from fedserver.store.folder import is_in_use, read_contact
from fedstream import tls
from fedstream.checkup.certificate import names as names_in
from fedstream.checkup.runner import Result, failed, ok, warning
from fedstream.v1 import negotiation_pb2, negotiation_pb2_grpc

_ASK_SECONDS = 5.0
_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not listened on


def port(config: ServerConfig) -> Result:
    """The port for members is free, or this state directory's own server has it."""
    return _port(config, config.listen, "--listen", "address")


def enrolment_port(config: ServerConfig) -> Result:
    """Likewise the port where sites join."""
    listen = enrolment_listen(config.listen, config.enrol_listen)
    return _port(config, listen, "--enrol-listen", "enrolment")


def metrics_port(config: ServerConfig) -> Result:
    """Likewise the port where Prometheus reads numbers."""
    return _port(config, config.metrics_listen, "--metrics-listen", "metrics")


def _port(config: ServerConfig, address: str, option: str, contact_key: str) -> Result:
    """`contact_key` is where a running server says which of its addresses this is."""
    host, number = tls.split_address(address)
    try:
        with socket.create_server((host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return ok(f"{address} is free")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            advice = f"Give an address of this machine as {option}, and a port above 1023 unless you are root"
            return failed(f"{address} cannot be listened on ({error.strerror or error})", advice)
    contact = _contact(config)
    if str(contact.get(contact_key, "")).endswith(f":{number}"):
        return ok(f"{address} is held by the server of {config.state} (pid {contact.get('pid')}), which runs")
    advice = f"Stop that program, or give another port with {option}"
    return failed(f"{address} is held by {_holder(host, number, config)}", advice)


def _contact(config: ServerConfig) -> Mapping[str, Any]:
    """What the server that runs on the state directory said of itself; empty if none runs, or nobody may look."""
    try:
        return read_contact(config.state) if is_in_use(config.state) else {}
    except StateError:
        return {}


def _holder(host: str, number: int, config: ServerConfig) -> str:
    """Who has the port, as far as it says so itself."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    address = f"[{near}]:{number}" if ":" in near else f"{near}:{number}"
    try:
        if config.plaintext:
            return f"another fedserver, of the federation {_ask_name(address)!r}"
        certificate = tls.look_at(address).certificate
    except (grpc.RpcError, OSError):
        certificate = b""
    if certificate and tls.SERVER_NAME in names_in(certificate):
        return f"another fedserver, with the certificate {tls.fingerprint(certificate)}"
    return "a program that is no fedserver, or does not say so"


def _ask_name(address: str) -> str:
    """The federation's name. A server with TLS tells it to members only."""
    with grpc.insecure_channel(address) as channel:
        stub = negotiation_pb2_grpc.NegotiationServiceStub(channel)
        return stub.DescribeTask(negotiation_pb2.DescribeTaskRequest(), timeout=_ASK_SECONDS).federation_name


def names(config: ServerConfig) -> Result:
    """The names that are given to sites have an address."""
    host, _ = tls.split_address(config.listen)
    if tls.is_loopback(host):
        advice = f"For sites elsewhere, add --listen {beyond_loopback(config.listen)}"
        advice += " in place of --plaintext" if config.plaintext else ""
        return warning(f"{config.listen} is for this machine only", advice)
    if not config.advertise:
        if host not in _ANYWHERE:
            return ok(f"sites are told {host}")
        advice = "Add --advertise with the name under which sites reach this machine"
        return warning("no name is advertised: sites are told an address of this machine", advice)
    lost = [name for name in config.advertise if not _resolves(name)]
    if lost:
        return failed(f"{', '.join(lost)} has no address", "Enter it in DNS, or check the spelling of --advertise")
    return ok(f"sites are told {config.advertise[0]}; {len(config.advertise)} of {len(config.advertise)} names resolve")


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        return False
