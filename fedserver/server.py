"""The server process: ports, services, and the order in which things start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sqlite3
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fedserver import lifecycle
from fedserver.bounds import channel_options
from fedserver.clock import Clock, SystemClock
from fedserver.config import ServerConfig
from fedserver.desk import Desk
from fedserver.disk import DiskRefuses, DiskWatch
from fedserver.evaluation import Evaluator
from fedserver.federation import Federation, FederationState
from fedserver.services import shared_chunks
from fedserver.services.admin import AdminServicer
from fedserver.services.negotiation import NegotiationServicer
from fedserver.services.parsing import ParsingInterceptor
from fedserver.services.transfer import TransferServicer
from fedserver.store import DamagedFile, State, StateError
from fedserver.store.database import RESTORE
from fedserver.store.disk import FreeBytes, free_bytes
from fedstream.files import FileSystem
from fedstream.tls import fingerprint, server_credentials, split_address
from fedstream.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    negotiation_pb2,
    negotiation_pb2_grpc,
    transfer_pb2,
)

log = structlog.get_logger()

OPTIONS = (
    # Clients behind NAT ping every 30 s; gRPC's own default would answer with "too many pings" and hang up.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share its clients
)
_UNIX_PATH_LIMIT = 100  # bytes; the kernel takes 107
_DOWNLOAD_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server can be reached. `fingerprint` is `None` without TLS."""

    address: str
    fingerprint: str | None
    admin_address: str


class Server:
    """One federation, served.

    Args:
        config: what the coordinator set.
        files: the file system of the state directory.
        clock: for all rules that depend on time.
        free: how much space is free where the state directory is.

    Raises:
        StateError: the state directory cannot be used.
    """

    def __init__(
        self,
        config: ServerConfig,
        files: FileSystem | None = None,
        clock: Clock | None = None,
        free: FreeBytes = free_bytes,
    ) -> None:
        self._config = config
        self._state = State(config.state, files)
        evaluator = Evaluator(config.task, config.task_settings, config.holdout, config.classes)
        disk = DiskWatch(self._state, config.min_free_bytes, config.retry_delay_seconds, free)
        self.federation = Federation(config, self._state, evaluator, clock or SystemClock(), disk)
        self._desk = Desk(self.federation)
        self._health = health.aio.HealthServicer()
        self._public = grpc.aio.server(
            interceptors=[ParsingInterceptor()], options=(*OPTIONS, *channel_options(config))
        )
        self._admin = grpc.aio.server()
        self.report: Path | None = None

    async def start(self) -> Listening:
        """Open the ports and serve; the model is prepared afterwards.

        Raises:
            OSError: the address cannot be listened on.
        """
        negotiation_pb2_grpc.add_NegotiationServiceServicer_to_server(
            NegotiationServicer(self.federation), self._public
        )
        shared_chunks.add_to_server(TransferServicer(self.federation, self._desk), self._public)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._public)
        services = [_name(negotiation_pb2, "NegotiationService"), _name(transfer_pb2, "TransferService")]
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self._public)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(self.federation), self._admin)
        reflection.enable_server_reflection([_name(admin_pb2, "AdminService"), reflection.SERVICE_NAME], self._admin)
        listening = self._listen()
        await self._public.start()
        await self._admin.start()
        for service in ("", *services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._state.write_contact(
            {
                "address": listening.address,
                "fingerprint": listening.fingerprint,
                "admin": listening.admin_address,
            }
        )
        return listening

    def _listen(self) -> Listening:
        host, _ = split_address(self._config.listen)
        admin_address = f"unix:{self._admin_socket()}"
        self._admin.add_insecure_port(admin_address)
        try:
            if self._config.plaintext:
                port, mark = self._public.add_insecure_port(self._config.listen), None
            else:
                identity = self._state.identity([*own_addresses(), *self._config.advertise])
                port = self._public.add_secure_port(self._config.listen, server_credentials(identity))
                mark = fingerprint(identity.certificate)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._config.listen}: is another program using the port?") from error
        shown = f"[{host}]" if ":" in host else host
        return Listening(f"{shown}:{port}", mark, admin_address)

    def _admin_socket(self) -> Path:
        path = (self._config.state / "admin.sock").resolve()
        if len(str(path).encode()) > _UNIX_PATH_LIMIT:
            path = Path(tempfile.mkdtemp(prefix="fedstream-")) / "admin.sock"
        path.unlink(missing_ok=True)  # of an earlier process: the state's lock says that it is gone
        return path

    async def run(self) -> str:
        """Live the federation's life; returns why it ended.

        Raises:
            FederationFailed: it could not be prepared.
            StateError, DamagedFile: what is stored is not what it was.
            DiskRefuses: the federation was to stop, and the disk took no more writes.
        """
        try:
            return await self._live()
        except (lifecycle.FederationFailed, StateError, DamagedFile, DiskRefuses) as error:
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
        await lifecycle.prepare(federation)
        reason = await lifecycle.run_rounds(federation, self._desk)
        self.report = await lifecycle.finish(federation, reason)
        await lifecycle.say_farewell(federation, reason)
        await lifecycle.keep_working_time(federation)
        federation.stand(FederationState.FINISHED, reason)
        return reason

    async def close(self) -> None:
        """Stop serving and let go of everything. Clients that are still fetching the last model get a while."""
        await self._health.enter_graceful_shutdown()
        await asyncio.gather(self._public.stop(_DOWNLOAD_SECONDS), self._admin.stop(1.0))
        await self.federation.evaluator.close()
        await self.federation.register.settled()
        self._desk.close()
        self._state.close()

    def stop_on_signals(self) -> None:
        """End in good order at the first SIGINT or SIGTERM; a second one ends the process at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        log.warning("stopping", signal=number.name, hint="once more to end at once")
        self.federation.stop(finish_round=False)
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(number)


def _name(module: object, service: str) -> str:
    name: str = module.DESCRIPTOR.services_by_name[service].full_name  # type: ignore[attr-defined]
    return name


def own_addresses() -> Iterable[str]:
    """Names and addresses by which other machines may know this one; never fails."""
    found = [socket.gethostname()]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # No packet is sent by connecting a datagram socket: it only asks which address a route would use.
        probe.connect(("192.0.2.1", 9))
        found.append(probe.getsockname()[0])
    return found
