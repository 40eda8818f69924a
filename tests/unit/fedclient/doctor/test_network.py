"""What the environment of a site says of proxies."""

from __future__ import annotations

import pytest

from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.doctor.network import proxy
from fedclient.doctor.scene import Scene
from fedstream.checkup.runner import Verdict

pytestmark = pytest.mark.numpy_task

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@pytest.mark.parametrize(
    ("environment", "verdict", "found"),
    [
        ({}, Verdict.OK, "none is set in the environment"),
        ({"https_proxy": "http://p:1"}, Verdict.WARNING, "https_proxy is set, and gRPC goes by it"),
        (
            {"http_proxy": "http://p:1", "no_proxy": "localhost,.example.org"},
            Verdict.OK,
            "http_proxy is set, but not for fl.example.org",
        ),
        (
            {"grpc_proxy": "http://p:1", "no_proxy": "other.org,"},
            Verdict.WARNING,
            "grpc_proxy is set, and gRPC goes by it",
        ),
    ],
)
def test_proxy_of_the_environment_is_named_unless_the_server_is_exempt(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], verdict: Verdict, found: str
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = ClientConfig(server="fl.example.org:8443", fingerprint="sha256:" + "0" * 64, data=None)

    result = proxy(Scene(config, Connection(config)))

    assert (result.verdict, result.found) == (verdict, found)
