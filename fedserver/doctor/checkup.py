"""Which checks there are, in which order, and what a failure of each would make of `fedserver run`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fedserver.config import ServerConfig
from fedserver.doctor import data, files, machine, network, state
from fedserver.exit_codes import ExitCode
from fedstream.checkup.report import report
from fedstream.checkup.runner import Check


def run_doctor(config: ServerConfig, say: Callable[[str], None], *, as_json: bool) -> int:
    """Look at everything, say what is found, and return the exit status: 0 if nothing failed."""
    return asyncio.run(report(checks_for(config), config, say, as_json=as_json))


def checks_for(config: ServerConfig) -> Sequence[Check[ServerConfig]]:
    """The checks of one server, of what it is to have: a certificate, a port for joining, one for metrics."""
    left_out = {"certificate"} if config.plaintext else set()
    left_out |= {"port for joining", "client authority"} if config.plaintext or config.open_enrolment else set()
    left_out |= set() if config.metrics_listen else {"port for metrics"}
    return [check for check in _CHECKS if check.name not in left_out]


_CHECKS = (
    Check("state directory", state.disk, ExitCode.BAD_STATE),
    Check("running server", state.lock, ExitCode.BAD_STATE, ("state directory",)),
    Check("database", state.database, ExitCode.BAD_STATE, ("state directory",)),
    Check("certificate", state.certificate, ExitCode.BAD_STATE, ("database",)),
    Check("port", network.port, ExitCode.BAD_CONFIGURATION),
    Check("port for joining", network.enrolment_port, ExitCode.BAD_CONFIGURATION),
    Check("port for metrics", network.metrics_port, ExitCode.BAD_CONFIGURATION),
    Check("advertised names", network.names, ExitCode.BAD_CONFIGURATION),
    Check("client authority", files.client_authority, ExitCode.BAD_CONFIGURATION),
    Check("out folder", state.out_folder, ExitCode.BAD_CONFIGURATION),
    Check("task", data.task, ExitCode.FAILED),
    Check("holdout", data.holdout, ExitCode.FAILED, ("task",)),
    Check("test images", data.test, ExitCode.FAILED, ("task",)),
    Check("first model", files.first_model, ExitCode.FAILED, ("task",)),
    Check("memory", machine.memory, ExitCode.FAILED),
    Check("open files", machine.open_files, ExitCode.FAILED),
)
