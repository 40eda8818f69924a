"""Which checks there are, in which order, and what a failure of each would make of `fedclient run`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.doctor import federation, network, site
from fedclient.doctor.scene import Scene
from fedclient.exit_codes import ExitCode
from fedstream.checkup.report import report
from fedstream.checkup.runner import Check, Result, skipped


def run_doctor(config: ClientConfig, say: Callable[[str], None], *, model: bool, as_json: bool) -> int:
    """Look at everything, say what is found, and return the exit status: 0 if nothing failed."""
    return asyncio.run(_run(config, say, model=model, as_json=as_json))


async def _run(config: ClientConfig, say: Callable[[str], None], *, model: bool, as_json: bool) -> int:
    connection = Connection(config)
    try:
        return await report(checks_for(config, model=model), Scene(config, connection), say, as_json=as_json)
    finally:
        await connection.close()


def checks_for(config: ClientConfig, *, model: bool) -> Sequence[Check[Scene]]:
    """The checks of one site. Without TLS there are none of its certificate."""
    secured = () if config.plaintext else _SECURED
    look_at_model = federation.model if model else _not_asked
    return (*_REACHED, *secured, *_AGREED, Check("model", look_at_model, ExitCode.DECLINED, ("task",)), *_LOCAL)


def _not_asked(_scene: Scene) -> Result:
    return skipped("not built; add --model, which takes some seconds, to compare its tensors with the federation's")


_REACHED = (
    Check("name resolution", network.resolve, ExitCode.UNREACHABLE),
    Check("proxy", network.proxy, ExitCode.UNREACHABLE),
    Check("TCP connection", network.connect, ExitCode.UNREACHABLE, ("name resolution",)),
)
_SECURED = (
    Check("TLS", network.handshake, ExitCode.UNREACHABLE, ("TCP connection",)),
    Check("site certificate", network.site_certificate, ExitCode.UNTRUSTED),
    Check("trust", network.trust, ExitCode.UNTRUSTED, ("TLS", "site certificate")),
    Check("certificate name", network.certificate_name, ExitCode.UNTRUSTED, ("TLS",)),
    Check("certificate dates", network.certificate_dates, ExitCode.UNTRUSTED, ("TLS",)),
)
_AGREED = (
    Check("protocol", network.protocol, ExitCode.UNREACHABLE, ("TCP connection", "trust", "certificate name")),
    Check("admission", network.admission, ExitCode.UNTRUSTED, ("protocol",)),
    Check("clock", network.clock, ExitCode.UNTRUSTED, ("TCP connection", "TLS")),
    Check("task", federation.task, ExitCode.DECLINED, ("admission",)),
    Check("classes", federation.meaning, ExitCode.DECLINED, ("task",)),
)
_LOCAL = (
    Check("class folders", site.class_folders, ExitCode.BAD_DATA, ("task",)),
    Check("data", site.data, ExitCode.BAD_DATA, ("class folders",)),
    Check("state folder", site.state_folder, ExitCode.BAD_CONFIGURATION),
    Check("out folder", site.out_folder, ExitCode.BAD_CONFIGURATION),
    Check("memory", site.memory, ExitCode.TRAINING_FAILED),
)
