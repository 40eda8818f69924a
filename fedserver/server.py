"""The server process: ports, services, and the order in which things start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fedserver.addresses import Advertised, enrolment_listen, keep_advertised, reached_as
from fedserver.admin_socket import AdminSocket
from fedserver.bounds import channel_options
from fedserver.clock import SystemClock
from fedserver.config import ServerConfig
from fedserver.desk import Desk
from fedserver.disk import DiskRefuses
from fedserver.driver import is_over, run_rounds
from fedserver.enrolment import AuditLog
from fedserver.evaluation import Evaluator
from fedserver.farewell import say_farewell
from fedserver.federation import Federation, FederationFailed, FederationState
from fedserver.gate import Gate, server_identity
from fedserver.office import Office
from fedserver.preparation import prepare
from fedserver.results import Made, finish
from fedserver.services.admin import AdminServicer
from fedserver.services.enrolment import CertificateServicer, EnrolmentServicer
from fedserver.services.negotiation import NegotiationServicer
from fedserver.services.parsing import ParsingInterceptor
from fedserver.services.transfer import TransferServicer, add_transfer_to_server
from fedserver.store import DamagedFile, State, StateError
from fedserver.store.database import RESTORE
from fedserver.upkeep import keep_end
from fedstream.errors import FedstreamError
from fedstream.files import FileSystem
from fedstream.tls import Identity, fingerprint, server_credentials, shown_address, split_address
from fedstream.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    negotiation_pb2,
    negotiation_pb2_grpc,
    transfer_pb2,
)

if TYPE_CHECKING:
    from fedserver.metrics_port import MetricsPort

log = structlog.get_logger()

OPTIONS = (
    # Clients behind NAT ping every 30 s; gRPC's own default would answer with "too many pings" and hang up.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share its clients
)
ENROLMENT_OPTIONS = (
    # Anybody can connect there. A request is under 1 KiB, and takes a signature and two commits.
    ("grpc.max_receive_message_length", 16 << 10),
    # Calls whose request never comes count too. gRPC hands over none of these, so a connection has so long in all.
    ("grpc.max_connection_age_ms", 20_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
    ("grpc.so_reuseport", 0),
)
_ENROLLING_AT_ONCE = 32
_FIRST_OPEN_PORT = 1024
_DOWNLOAD_SECONDS = 60.0
"""For clients that were told of the end and still fetch the final models."""
_LEAVE_SECONDS = 1.0
"""For every other call. A client comes back, and a federation that could not be prepared has nothing to fetch."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server can be reached. `fingerprint` is `None` without TLS, `enrolment_address` where nobody enrols."""

    address: str
    fingerprint: str | None
    admin_address: str
    enrolment_address: str | None = None
    metrics_address: str | None = None


class StoppedUnready(FedstreamError):
    """The server was told to stop before it could begin. The message says what is left, and what to do."""


class Server:
    """One federation, served.

    Args:
        config: what the coordinator set.
        files: the file system of the state directory.

    Raises:
        StateError: the state directory cannot be used.
    """

    def __init__(self, config: ServerConfig, files: FileSystem | None = None) -> None:
        self._config = config
        self._state = State(config.state, files)
        evaluator = Evaluator(config.task, config.task_settings, config.holdout, config.classes)
        self.federation = Federation(config, self._state, evaluator, SystemClock())
        self._desk = Desk(self.federation)
        self._transfer = TransferServicer(self.federation, self._desk)
        self._health = health.aio.HealthServicer()
        self._gate = self._open_gate()
        bounds, checks = channel_options(config), [self._gate.callers] if self._gate else []
        self._public = grpc.aio.server(interceptors=[*checks, ParsingInterceptor()], options=(*OPTIONS, *bounds))
        self._enrolment = grpc.aio.server(
            interceptors=[ParsingInterceptor()],
            options=(*ENROLMENT_OPTIONS, *bounds),
            maximum_concurrent_rpcs=_ENROLLING_AT_ONCE,
        )
        self._admin = grpc.aio.server(interceptors=[ParsingInterceptor()])
        self._admin_socket = AdminSocket(config.state)
        self.made = Made()
        self._contact: dict[str, Any] = {}
        self._starting: asyncio.Task[None] | None = None
        self._metrics: MetricsPort | None = None

    def _open_gate(self) -> Gate | None:
        """The gate, unless the coordinator has chosen to have none."""
        if self._config.plaintext or self._config.open_enrolment:
            return None
        try:
            gate = Gate.open(self._config, self._state, self.federation.clock)
        except BaseException:
            self._state.close()
            raise
        gate.attach(self.federation)
        return gate

    @property
    def audit(self) -> AuditLog | None:
        """The audit log; `None` where nobody is asked for a certificate."""
        return self._gate.membership.audit if self._gate is not None else None

    async def start(self) -> Listening:
        """Open the ports and serve; the model is prepared afterwards.

        Raises:
            OSError: the address cannot be listened on.
        """
        services = self._add_services()
        listening, office = self._listen()
        admin = AdminServicer(self.federation, office)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, self._admin)
        reflection.enable_server_reflection([_name(admin_pb2, "AdminService"), reflection.SERVICE_NAME], self._admin)
        # Before anybody can ask: to change it later waits for every peer that watches it to take what it is told.
        for service in ("", *services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        # Whoever starts it may be interrupted; gRPC's own start does not bear that. It is waited for in `close`.
        self._starting = asyncio.create_task(self._start_ports())
        await asyncio.shield(self._starting)
        if self._config.metrics_listen:
            self._metrics = self._open_metrics()
            listening = replace(listening, metrics_address=self._metrics.address)
        contact: dict[str, Any] = {"address": listening.address, "fingerprint": listening.fingerprint}
        contact |= {"enrolment": listening.enrolment_address, "admin": listening.admin_address}
        contact |= {"metrics": listening.metrics_address}
        self._state.write_contact(contact)
        self._contact = contact
        return listening

    def _open_metrics(self) -> MetricsPort:
        from fedserver.metrics_port import MetricsPort  # a twentieth of a start, for those who want it

        return MetricsPort(self._config.metrics_listen, self.federation)

    async def _start_ports(self) -> None:
        for each in (self._public, self._enrolment, self._admin):
            await each.start()

    def _add_services(self) -> list[str]:
        """Put the clients' services on their ports; returns the names of those on the public one."""
        negotiation = NegotiationServicer(self.federation)
        negotiation_pb2_grpc.add_NegotiationServiceServicer_to_server(negotiation, self._public)
        add_transfer_to_server(self._transfer, self._public)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._public)
        services = [_name(negotiation_pb2, "NegotiationService"), _name(transfer_pb2, "TransferService")]
        if self._gate is not None:
            membership = self._gate.membership
            certificates = CertificateServicer(self.federation, membership)
            enrolment_pb2_grpc.add_CertificateServiceServicer_to_server(certificates, self._public)
            services.append(_name(enrolment_pb2, "CertificateService"))
            enrolment = EnrolmentServicer(self.federation, membership, self._gate.authority)
            enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(enrolment, self._enrolment)
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self._public)
        return services

    def _listen(self) -> tuple[Listening, Office | None]:
        config, admin_address = self._config, self._admin_socket.bind(self._admin)
        if config.plaintext:
            port = _bound(config.listen, lambda: self._public.add_insecure_port(config.listen))
            return Listening(_with_port(config.listen, port), None, admin_address), None
        identity = server_identity(self._state, config.advertise)
        roots = self._gate.client_roots if self._gate is not None else None
        credentials = server_credentials(identity, roots)
        port = _bound(config.listen, lambda: self._public.add_secure_port(config.listen, credentials))
        address, mark = _with_port(config.listen, port), fingerprint(identity.certificate)
        if self._gate is None:
            return Listening(address, mark, admin_address), None
        wanted = enrolment_listen(config.listen, config.enrol_listen)
        port = _bound(wanted, lambda: self._enrolment.add_secure_port(wanted, server_credentials(identity)))
        listening = Listening(address, mark, admin_address, _with_port(wanted, port))
        return listening, self._open_office(self._gate, identity, listening)

    def _open_office(self, gate: Gate, identity: Identity, listening: Listening) -> Office:
        assert listening.enrolment_address is not None, "where there is a gate, sites enrol"
        advertise = self._config.advertise
        server, enrolment = reached_as(listening.address, advertise), reached_as(listening.enrolment_address, advertise)
        advertised = Advertised(server, enrolment)
        keep_advertised(self._state, advertised)
        return Office(gate.membership, identity, advertised)

    async def run(self) -> str:
        """Live the federation's life; returns why it ended.

        Raises:
            FederationFailed: it could not be prepared.
            StoppedUnready: it was stopped before it was.
            StateError, DamagedFile: what is stored is not what it was.
            DiskRefuses: the federation was to stop, and the disk took no more writes.
        """
        try:
            return await self._live()
        except (FederationFailed, StateError, DamagedFile, DiskRefuses) as error:
            self.federation.stand(FederationState.FAILED, str(error))
            raise
        except (OSError, sqlite3.Error) as error:
            named = self._named(error)
            if named is None:
                raise
            self.federation.stand(FederationState.FAILED, str(named))
            raise named from error

    def _named(self, error: Exception) -> DiskRefuses | StateError | None:
        """What an error of the disk or the database means, with what to do; `None` if it is about something else."""
        disk = self.federation.disk
        if disk.note(error) is not None:
            return disk.final_words()
        if isinstance(error, sqlite3.DatabaseError):
            return StateError(f"the database in {self._state.folder} fails ({error}); {RESTORE}")
        return None

    async def _live(self) -> str:
        federation = self.federation
        await self._prepare()
        # Until now a first start is in the log alone: keys, settings and the initial model.
        await asyncio.to_thread(self._state.database.checkpoint)
        reason = await run_rounds(federation, self._desk)
        self.made = await finish(federation, reason)
        await say_farewell(federation, reason)
        await keep_end(federation)
        if is_over(federation):
            self._leave_word(reason)
        federation.stand(FederationState.FINISHED, reason)
        return reason

    async def _prepare(self) -> None:
        """Prepare, unless the federation is to stop meanwhile: to read a holdout or to build a model may take minutes.

        Raises:
            FederationFailed: it could not be prepared.
            StoppedUnready: it was stopped before it was.
        """
        preparing = asyncio.create_task(prepare(self.federation))
        stopped = asyncio.create_task(self.federation.stop_requested.wait())
        try:
            await asyncio.wait({preparing, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not preparing.done():
                message = f"stopped by the coordinator before it was ready; what is in {self._config.state} stays"
                raise StoppedUnready(f"{message}, and the same command goes on from it")
            await preparing
        finally:  # which ends the worker. What a thread writes just then is cut as by a kill, which the state survives
            for task in (preparing, stopped):
                task.cancel()
            await asyncio.gather(preparing, stopped, return_exceptions=True)

    def _leave_word(self, reason: str) -> None:
        """Let local commands say afterwards that this was the end, if the disk takes it."""
        with self.federation.disk.may_refuse():
            self._state.write_contact({**self._contact, "over": reason, "rounds": len(self.federation.history)})

    async def close(self) -> None:
        """Stop serving and let go of everything, also of a start that was interrupted.

        Clients that are still fetching the last model get a while.
        """
        if self._starting is not None:
            await asyncio.wait({self._starting})
        # One who asked for each change of it and takes none of what is written to him would be waited for.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._health.enter_graceful_shutdown()
        self.federation.is_leaving = True  # or a client that comes just now would be told, and could fetch nothing
        if self.federation.outcome is not None:  # for these alone: one who watches the health never hangs up
            await self._transfer.downloads.over(_DOWNLOAD_SECONDS)
        await asyncio.gather(*(each.stop(_LEAVE_SECONDS) for each in (self._public, self._enrolment, self._admin)))
        if self._metrics is not None:  # not before: a client that came while it closes would be told of the end in vain
            await self._metrics.close()
        self._admin_socket.remove()
        await self.federation.evaluator.close()
        await self.federation.register.settled()
        self._desk.close()
        self._state.close()


def _name(module: object, service: str) -> str:
    name: str = module.DESCRIPTOR.services_by_name[service].full_name  # type: ignore[attr-defined]
    return name


def _bound(listen: str, bind: Callable[[], int]) -> int:
    try:
        return bind()
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listen}: {_why_not(listen)}") from error


def _why_not(listen: str) -> str:
    host, port = split_address(listen)
    try:
        socket.getaddrinfo(host, port)
    except OSError:
        return f"{host} has no address; check its spelling and this machine's DNS"
    words = "is another program using the port, and is that an address of this machine?"
    right = f" Ports below {_FIRST_OPEN_PORT} need a right that only root has by default."
    return words + right if port < _FIRST_OPEN_PORT else words


def _with_port(listen: str, port: int) -> str:
    return shown_address(split_address(listen)[0], port)
