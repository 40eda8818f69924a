"""The socket of local commands: who can open it, where it is, what is left of it, and what is no message. 4 s."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import tempfile
from pathlib import Path

import grpc
import pytest

from fedserver import admin_socket
from fedserver.config import ServerConfig
from fedserver.server import Server
from fedstream.errors import InvalidRequest
from fedstream.status import from_rpc_error
from fedstream.v1 import admin_pb2
from tests.support.serving import serving

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]

NO_MESSAGE = b"\x0a\xff"  # a field whose length is missing


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_socket_can_be_opened_by_its_owner_only_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with serving(tmp_path) as (_, listening):
            path = Path(listening.admin_address.removeprefix("unix:"))
            assert path == tmp_path / "state" / "admin.sock"
            assert mode_of(path) == 0o600
            assert os.umask(0) == 0
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    "name",
    [
        "n" * 100,
        pytest.param(
            os.fsdecode(b"klinik-m\xfcnchen"),
            marks=pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes no such names"),
        ),
    ],
    ids=["long", "no UTF-8"],
)
async def test_socket_of_a_state_directory_whose_name_can_be_no_address_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    async with serving(tmp_path, state=tmp_path / name) as (_, listening):
        (folder,) = elsewhere.glob("fedstream-*")
        assert listening.admin_address == f"unix:{folder / 'admin.sock'}"
        assert mode_of(folder / "admin.sock") == 0o600
    assert not list(elsewhere.glob("fedstream-*"))


async def test_socket_of_a_server_that_was_killed_is_cleared_away_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, state = tmp_path / "tmp", tmp_path / ("n" * 100)
    left = elsewhere / "fedstream-left"
    left.mkdir(parents=True)
    state.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left / "admin.sock"))
    (state / "server.json").write_text(json.dumps({"admin": f"unix:{left / 'admin.sock'}"}))
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    async with serving(tmp_path, state=state):
        assert not left.exists()
        assert len(list(elsewhere.glob("fedstream-*"))) == 1


async def test_place_where_no_socket_can_be_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_socket, "_UNIX_PATH_LIMIT", 1_000)  # so the system itself refuses the long name
    state = tmp_path / ("n" * 100)
    server = Server(ServerConfig(task="linear", listen="127.0.0.1:0", state=state, out=tmp_path / "out"))
    try:
        with pytest.raises(OSError, match=r"no unix socket can be made at .*admin\.sock, .*; give a --state on a disk"):
            await server.start()
    finally:
        await server.close()


async def test_message_that_is_none_is_refused_in_every_call_with_a_reason(tmp_path: Path) -> None:
    service = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
    async with serving(tmp_path) as (_, listening), grpc.aio.insecure_channel(listening.admin_address) as channel:
        for method in service.methods:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"/{service.full_name}/{method.name}")(NO_MESSAGE)
            error = from_rpc_error(caught.value)
            assert isinstance(error, InvalidRequest), f"{method.name}: {caught.value}"
            assert "not in the form of its kind" in error.message
