"""How long a person waits: from `fedserver run` to its first answer, and for `fedclient --help`. Medians of five."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.options import Options
from benchmarks.tables import Line, Table
from fedserver.server import Listening
from fedstream.tls import CHANNEL_OPTIONS, channel_credentials, fetch_certificate
from tests.support.processes import stage

_TIMES = 5
_HELP_SECONDS = 60.0


def run(options: Options) -> Table:
    """Measure both."""
    measured: dict[str, Callable[[], float]] = {
        "fedserver run, first answer": _first_answer,
        "fedclient --help": lambda: _help("fedclient.cli"),
        "fedserver --help": lambda: _help("fedserver.cli"),
    }
    lines = []
    for name, measure in measured.items():
        seconds = [measure() for _ in range(_TIMES)]
        options.say(f"{name}: {', '.join(f'{each:.2f}' for each in seconds)} s")
        lines.append(Line(name, {"s": statistics.median(seconds)}, {"seconds": seconds}))
    return Table("start: seconds, medians of five", lines)


def _first_answer() -> float:
    """To a call of the health service over TLS, of a server of `brain_mri` that is still making its model."""
    with tempfile.TemporaryDirectory(prefix="start-") as folder, stage(Path(folder)) as made:
        began = time.perf_counter()
        server = made.server("--backbone-weights", "random", task="brain_mri", open_enrolment=True)
        _check_health(server.listening)
        return time.perf_counter() - began


def _check_health(listening: Listening) -> None:
    assert listening.fingerprint is not None
    certificate = fetch_certificate(listening.address, listening.fingerprint)
    credentials = channel_credentials(certificate)
    with grpc.secure_channel(listening.address, credentials, options=CHANNEL_OPTIONS) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10.0, wait_for_ready=True)


def _help(module: str) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", module, "--help"], check=True, stdout=subprocess.DEVNULL, timeout=_HELP_SECONDS
    )
    return time.perf_counter() - began
