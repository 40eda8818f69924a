"""Errors on the wire, over a real gRPC call: what the server decided arrives whole, all else is the network. 1 s."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from fedstream.dtypes import DataType
from fedstream.errors import (
    PROTOCOL_ERRORS,
    FedstreamError,
    InvalidRequest,
    LimitExceeded,
    ProtocolError,
    SchemaMismatch,
    TransportError,
)
from fedstream.manifest import TensorEntry, check_manifest
from fedstream.schema import ModelSchema, TensorSpec
from fedstream.status import ERROR_DOMAIN, STATUS_DETAILS_KEY, from_rpc_error, to_status
from tests.unit.fedstream.examples import entry

pytestmark = pytest.mark.numpy_task

Context = grpc.aio.ServicerContext
Behaviour = Callable[[Context], Awaitable[None]]
Fail = Callable[[Behaviour], Awaitable[FedstreamError]]


@pytest.fixture
async def fail() -> AsyncIterator[Fail]:
    """Makes a real call that ends as told, and gives what the client makes of it."""
    behaviours: list[Behaviour] = []

    async def handler(_request: bytes, context: Context) -> bytes:
        await behaviours[-1](context)
        return b""

    methods = {"Fail": grpc.unary_unary_rpc_method_handler(handler)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        async def call(behaviour: Behaviour) -> FedstreamError:
            behaviours.append(behaviour)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/test/Fail")(b"", timeout=10)
            return from_rpc_error(caught.value)

        yield call
    await server.stop(None)


def refuse(error: ProtocolError) -> Behaviour:
    async def behaviour(context: Context) -> None:
        status = rpc_status.to_status(to_status(error))
        await context.abort(status.code, status.details, status.trailing_metadata)

    return behaviour


def end(code: grpc.StatusCode, message: str, trailing: bytes | None = None) -> Behaviour:
    async def behaviour(context: Context) -> None:
        await context.abort(code, message, () if trailing is None else ((STATUS_DETAILS_KEY, trailing),))

    return behaviour


def packed(*details: object, code: int = 3, message: str = "m") -> bytes:
    anys = []
    for detail in details:
        one = any_pb2.Any()
        one.Pack(detail)
        anys.append(one)
    return status_pb2.Status(code=code, message=message, details=anys).SerializeToString()


async def test_every_error_arrives_as_what_it_was(fail: Fail) -> None:
    for reason, kind in PROTOCOL_ERRORS.items():
        sent = kind(f"{reason}: größer, {{}} 100% — 重み", tensor="größe", committed_size=2**63)
        received = await fail(refuse(sent))
        assert isinstance(received, ProtocolError), received
        assert (type(received), received.message, received.metadata) == (kind, sent.message, sent.metadata)


async def test_every_error_has_its_documented_status_code_and_domain() -> None:
    for reason, kind in PROTOCOL_ERRORS.items():
        status = to_status(kind("m", tensor="t"))
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (status.code, status.message) == (grpc.StatusCode[kind.code].value[0], "m")
        assert info == error_details_pb2.ErrorInfo(reason=reason, domain="fedstream.v1", metadata={"tensor": "t"})


@pytest.mark.parametrize(
    "delay", [timedelta(0), timedelta(milliseconds=1), timedelta(seconds=7.25), timedelta(hours=1)]
)
async def test_time_to_come_back_arrives(fail: Fail, delay: timedelta) -> None:
    received = await fail(refuse(LimitExceeded("full", delay, limit="streams")))
    assert isinstance(received, LimitExceeded)
    assert (received.retry_after, received.metadata) == (delay, {"limit": "streams"})


async def test_largest_schema_mismatch_arrives_whole_in_kind(fail: Fail) -> None:
    name = "重" * 85  # 255 bytes, of which each becomes three in the status message
    shape = (1,) * 31 + (2**34,)
    schema = ModelSchema((TensorSpec(name, DataType.FLOAT32, shape),))
    other = entry(name, DataType.BFLOAT16, shape, 2**35)
    with pytest.raises(SchemaMismatch) as caught:
        check_manifest([TensorEntry(other.name, other.dtype, other.shape, other.digest)], schema)
    received = await fail(refuse(caught.value))
    assert isinstance(received, SchemaMismatch)
    assert received.metadata["tensor"] == name
    assert received.message.startswith(f"tensor {name} should be ")


async def test_error_with_more_to_say_than_fits_arrives_clipped(fail: Fail) -> None:
    received = await fail(refuse(InvalidRequest("ü" * 100_000, field="f" * 100_000, other="a\nb\0c")))
    assert isinstance(received, InvalidRequest)
    assert (received.message, received.metadata) == ("ü" * 512, {"field": "f" * 512, "other": "a b c"})


# What is not the server's word.


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_status_without_an_error_info_is_the_network(fail: Fail, code: grpc.StatusCode) -> None:
    received = await fail(end(code, "proxy says no"))
    assert type(received) is TransportError
    assert str(received) == f"{code.name}: proxy says no"


OTHERS_INFO = error_details_pb2.ErrorInfo(reason="ROUND_CLOSED", domain="googleapis.com")
MANGLED = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff")


@pytest.mark.parametrize(
    "trailing",
    [
        b"",
        b"\xff\xff not a status",
        packed(),
        packed(OTHERS_INFO),
        packed(duration_pb2.Duration(seconds=1)),
        status_pb2.Status(code=3, details=[MANGLED]).SerializeToString(),
    ],
    ids=["empty", "mangled status", "no details", "of another domain", "of another type", "mangled detail"],
)
async def test_details_that_are_not_ours_are_the_network(fail: Fail, trailing: bytes) -> None:
    assert type(await fail(end(grpc.StatusCode.INVALID_ARGUMENT, "m", trailing))) is TransportError


async def test_reason_of_a_newer_server_is_still_its_decision(fail: Fail) -> None:
    info = error_details_pb2.ErrorInfo(reason="TOO_TIRED", domain=ERROR_DOMAIN, metadata={"hours": "9"})
    received = await fail(end(grpc.StatusCode.ABORTED, "m", packed(info, message="sleeping")))
    assert type(received) is ProtocolError
    assert (received.message, received.metadata) == ("sleeping", {"hours": "9"})


async def test_metadata_keys_that_are_words_of_the_program_stay_metadata(fail: Fail) -> None:
    metadata = {"message": "x", "self": "y", "retry_after": "z", "not an identifier": ""}
    info = error_details_pb2.ErrorInfo(reason="LIMIT_EXCEEDED", domain=ERROR_DOMAIN, metadata=metadata)
    received = await fail(end(grpc.StatusCode.RESOURCE_EXHAUSTED, "m", packed(info, message="full")))
    assert isinstance(received, LimitExceeded)
    assert (received.message, received.metadata) == ("full", metadata)
    assert received.retry_after == timedelta(seconds=30)


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [
        (2**62, 0, timedelta(days=1)),
        (-(2**62), 0, timedelta(0)),
        (-1, -999_999_999, timedelta(0)),
        (0, 2**31 - 1, timedelta(microseconds=2_147_483)),
    ],
)
async def test_absurd_time_to_come_back_is_brought_into_range(
    fail: Fail, seconds: int, nanos: int, expected: timedelta
) -> None:
    delay = duration_pb2.Duration()
    delay.seconds, delay.nanos = seconds, nanos
    details = (
        error_details_pb2.ErrorInfo(reason="LIMIT_EXCEEDED", domain=ERROR_DOMAIN),
        error_details_pb2.RetryInfo(retry_delay=delay),
    )
    received = await fail(end(grpc.StatusCode.RESOURCE_EXHAUSTED, "m", packed(*details)))
    assert isinstance(received, LimitExceeded)
    assert received.retry_after == expected


async def test_nobody_listening_is_the_network() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test/Fail")(b"", timeout=5)
    assert str(from_rpc_error(caught.value)).startswith("UNAVAILABLE: ")


def test_error_that_is_no_call_is_the_network() -> None:
    assert str(from_rpc_error(grpc.RpcError())) == "RpcError"


async def test_words_of_the_other_end_bring_no_control_characters_to_a_terminal(fail: Fail) -> None:
    info = error_details_pb2.ErrorInfo(reason="INVALID_REQUEST", domain=ERROR_DOMAIN, metadata={"field": "\x1b[2J"})
    decided = await fail(end(grpc.StatusCode.INVALID_ARGUMENT, "", packed(info, message="no \x1b]0;OWNED\x07")))
    assert isinstance(decided, InvalidRequest)
    assert (decided.message, decided.metadata) == ("no  ]0;OWNED", {"field": "[2J"})
    assert str(await fail(end(grpc.StatusCode.UNAVAILABLE, "gone \x1b[31m", b""))) == "UNAVAILABLE: gone  [31m"
