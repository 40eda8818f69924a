"""A proxy of the environment: past it to this very machine, and named where it is in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedclient.proxies import goes_through, proxy_hint
from tests.support.scripted import scripted

pytestmark = pytest.mark.numpy_task

NOBODY = "http://127.0.0.1:9"


async def test_server_on_this_machine_is_reached_past_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", NOBODY)
    monkeypatch.setenv("http_proxy", NOBODY)
    async with scripted() as server:
        connection = await server.connection(tmp_path)
        try:
            assert (await connection.describe_task()).federation_name == "test"
        finally:
            await connection.close()


def test_proxy_is_named_where_it_is_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_hint("fl.example.org:8443") == ""
    monkeypatch.setenv("https_proxy", NOBODY)
    hint = " (https_proxy is set: add fl.example.org to no_proxy to go past that proxy)"
    assert proxy_hint("fl.example.org:8443") == hint
    assert [goes_through(host) for host in ("fl.example.org", "localhost", "127.0.0.1", "::1")] == [True, *[False] * 3]
    monkeypatch.setenv("no_proxy", "10.0.0.1, .example.org")
    assert not goes_through("fl.example.org")
