"""What gRPC keeps by itself, on a real server whose event loop is busy while a call comes. 5 s."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedserver.bounds import WAITING_OPTION, channel_options
from fedserver.config import ServerConfig

_BUSY_SECONDS = 2.5


async def test_call_waits_for_a_busy_server_as_long_as_it_takes(tmp_path: Path) -> None:
    options = channel_options(ServerConfig(state=tmp_path))
    assert await _answer_of_a_busy_server(options) == grpc.StatusCode.OK
    assert dict(options)[WAITING_OPTION] > 30  # which is gRPC's own


async def test_call_that_waits_for_longer_is_cancelled() -> None:
    """That the option is the one of that name, whatever gRPC makes of it in a later version."""
    assert await _answer_of_a_busy_server([(WAITING_OPTION, 1)]) == grpc.StatusCode.CANCELLED


async def _answer_of_a_busy_server(options: Any) -> grpc.StatusCode:
    server = grpc.aio.server(options=options)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        calls = [asyncio.create_task(asyncio.to_thread(_call, port)) for _ in range(4)]
        await asyncio.sleep(0.1)
        time.sleep(_BUSY_SECONDS)  # noqa: ASYNC251 - what is tested
        codes = await asyncio.gather(*calls)
    finally:
        await server.stop(None)
    return max(codes, key=lambda code: code is not grpc.StatusCode.OK)


def _call(port: int) -> grpc.StatusCode:
    time.sleep(0.3)  # the loop is busy by now
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            stub.Check(health_pb2.HealthCheckRequest(), timeout=30.0)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK
