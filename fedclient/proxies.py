"""Proxies that the environment names: gRPC goes by them, and says nothing of it where one is in the way."""

from __future__ import annotations

import os

from fedstream.tls import is_loopback, split_address

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXEMPTIONS = ("no_grpc_proxy", "no_proxy")
"""What gRPC looks at, in its order."""


def proxy_variable() -> str | None:
    """The variable that sends gRPC through a proxy, if any is set."""
    return next((name for name in _VARIABLES if os.environ.get(name)), None)


def goes_through(host: str) -> bool:
    """Whether a connection to `host` goes through the proxy that is set. To this machine none does."""
    exempt = next((os.environ[name] for name in _EXEMPTIONS if os.environ.get(name)), "")
    is_exempt = any(entry.strip() and host.endswith(entry.strip().lstrip(".")) for entry in exempt.split(","))
    return proxy_variable() is not None and not is_exempt and not is_loopback(host)


def proxy_hint(address: str) -> str:
    """For the end of a message about a server that is not reached; empty where no proxy is in between."""
    host, _ = split_address(address)
    return f" ({proxy_variable()} is set: add {host} to no_proxy to go past that proxy)" if goes_through(host) else ""
