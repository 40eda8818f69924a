"""What answers on the public port, and what does not: health and reflection do, administration does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fedstream.v1 import admin_pb2, admin_pb2_grpc, negotiation_pb2
from tests.support.serving import BareSite, administration, serving

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]

PUBLIC = [
    "fedstream.v1.CertificateService",
    "fedstream.v1.NegotiationService",
    "fedstream.v1.TransferService",
    "grpc.health.v1.Health",
]


async def reflect(channel: grpc.aio.Channel, **request: str) -> reflection_pb2.ServerReflectionResponse:
    """One question to the reflection service, answered."""
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(**request))
    answer: reflection_pb2.ServerReflectionResponse = await call.read()
    call.cancel()
    return answer


async def listed(channel: grpc.aio.Channel) -> list[str]:
    """The services that reflection names, sorted, without itself."""
    answer = await reflect(channel, list_services="")
    names = sorted(service.name for service in answer.list_services_response.service)
    return [name for name in names if name != "grpc.reflection.v1alpha.ServerReflection"]


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_health_and_reflection_answer_on_the_public_port(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, listening), BareSite.dial(listening) as site:
        health = health_pb2_grpc.HealthStub(site.channel)
        for service in ("", *PUBLIC[:3]):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        unknown = health.Check(health_pb2.HealthCheckRequest(service="fedstream.v1.AdminService"))
        assert await code_of(unknown) is grpc.StatusCode.NOT_FOUND
        assert await listed(site.channel) == PUBLIC
        found = await reflect(site.channel, file_containing_symbol="fedstream.v1.NegotiationService")
        files = [FileDescriptorProto.FromString(one) for one in found.file_descriptor_response.file_descriptor_proto]
        assert "fedstream/v1/negotiation.proto" in [file.name for file in files]


async def test_administration_is_not_on_the_public_port(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, listening), BareSite.dial(listening) as site:
        public = admin_pb2_grpc.AdminServiceStub(site.channel)
        for call in (
            public.GetState(admin_pb2.GetStateRequest()),
            public.ListClients(admin_pb2.ListClientsRequest()),
            public.Pause(admin_pb2.PauseRequest()),
            public.Stop(admin_pb2.StopRequest()),
        ):
            assert await code_of(call) is grpc.StatusCode.UNIMPLEMENTED
        assert not server.federation.stop_requested.is_set()


async def test_administration_is_on_a_socket_that_only_its_owner_can_reach(tmp_path: Path) -> None:
    async with serving(tmp_path, name="trial") as (_, listening):
        channel, stub = administration(listening)
        async with channel:
            assert (await stub.GetState(admin_pb2.GetStateRequest())).federation_name == "trial"
            assert await listed(channel) == ["fedstream.v1.AdminService"]
            clients = negotiation_pb2.DescribeTaskRequest()
            call = channel.unary_unary(
                "/fedstream.v1.NegotiationService/DescribeTask",
                request_serializer=negotiation_pb2.DescribeTaskRequest.SerializeToString,
            )
            assert await code_of(call(clients)) is grpc.StatusCode.UNIMPLEMENTED
        socket = Path(listening.admin_address.removeprefix("unix:"))
        assert socket.parent.stat().st_mode & 0o077 == 0


async def test_certificate_of_a_server_is_the_one_its_fingerprint_names_and_its_key_is_private(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, listening):
        assert listening.fingerprint is not None
        assert (server.federation.config.state / "server.key").stat().st_mode & 0o777 == 0o600
    async with serving(tmp_path) as (_, again):
        assert again.fingerprint == listening.fingerprint
