"""`fedserver run`."""

from __future__ import annotations

import asyncio
import json
import shlex
import sqlite3
from functools import partial
from pathlib import Path

import structlog
from rich.console import Console
from rich.markup import escape

from fedserver.addresses import beyond_loopback, reached_as
from fedserver.config import ServerConfig
from fedserver.disk import DiskRefuses, enough_bytes, pause_seconds
from fedserver.enrolment.handshakes import HandshakeWatch, watching_handshakes
from fedserver.exit_codes import ExitCode
from fedserver.federation import FederationFailed
from fedserver.open_files import allow_many_open_files
from fedserver.results import Made
from fedserver.runtime import collect_cycles_seldom, take_short_turns
from fedserver.server import Listening, Server, StoppedUnready
from fedserver.signals import stop_on_signals
from fedserver.store import DamagedFile, StateError
from fedserver.store.disk import trouble_of
from fedstream.checkup.machine import judge_folder
from fedstream.checkup.runner import Verdict
from fedstream.heap import keep_few_heaps
from fedstream.logs import configure_logs, go_on_without_output
from fedstream.room import comes_room
from fedstream.tls import is_loopback, split_address

log = structlog.get_logger()


async def run_server(config: ServerConfig, log_json: bool | None, log_level: str) -> ExitCode:
    """Serve one federation to its end."""
    keep_few_heaps()
    collect_cycles_seldom()
    take_short_turns()
    allow_many_open_files()
    with watching_handshakes() as handshakes:
        go_on_without_output()
        configure_logs(as_json=log_json, level=log_level)
        structlog.contextvars.bind_contextvars(task=config.task)
        return await _serve(config, handshakes)


async def _serve(config: ServerConfig, handshakes: HandshakeWatch) -> ExitCode:
    if not await _room_comes(config):
        log.warning("stopped", because="stopped by the coordinator while there was no room on the disk")
        return ExitCode.FINISHED
    server: Server | None = None
    try:
        _require_folder(config.out)
        server = Server(config)
        handshakes.audit = server.audit
        # Now, or an interrupted start would end in the middle of anything.
        stop_on_signals(partial(server.federation.stop, finish_round=False))
        listening = await server.start()
    except (StateError, ValueError, OSError, sqlite3.Error) as error:
        log.error("cannot start", error=str(error))
        is_of_the_state = isinstance(error, StateError) or trouble_of(error) is not None
        return ExitCode.BAD_STATE if is_of_the_state else ExitCode.BAD_CONFIGURATION
    else:
        announce(config, listening)
        return await _live(server)
    finally:
        if server is not None:
            await server.close()


async def _room_comes(config: ServerConfig) -> bool:
    """Wait until there is room on the disks to start with; whether it came before a signal to stop."""
    stopped = asyncio.Event()
    stop_on_signals(stopped.set)  # also a hang-up is as little the end as later on
    least_bytes, pause = enough_bytes(config.min_free_bytes), pause_seconds(config.retry_delay_seconds)
    return await comes_room((config.state, config.out), least_bytes, pause, stopped)


def _require_folder(out: Path) -> None:
    """See that what is made at the end will have a place. To miss it only after all rounds would be late.

    Raises:
        ValueError: it has none.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--out {out} cannot be made a folder: a file is in its way") from error
    except OSError as error:
        raise ValueError(f"--out {out} cannot be made ({error.strerror}); name a folder that can") from error
    judged = judge_folder(out, 1, 1)
    if judged.verdict is Verdict.FAILED:
        raise ValueError(f"--out {out}: {judged.found}. {judged.advice}")


async def _live(server: Server) -> ExitCode:
    try:
        reason = await server.run()
    except (StateError, DamagedFile):
        return ExitCode.BAD_STATE
    except (FederationFailed, DiskRefuses):
        return ExitCode.FAILED
    except StoppedUnready as stopped:
        log.warning("stopped", because=str(stopped))
        return ExitCode.FINISHED
    return _ended(reason, server.made)


def _ended(reason: str, made: Made) -> ExitCode:
    """Say what has become of it. A report or models that are not there are no success to whoever waits for them."""
    if not made.missing:
        log.info("finished", reason=reason, report=str(made.report))
        return ExitCode.FINISHED
    there = {"report": str(made.report)} if made.report is not None else {}
    hint = "see the errors before; `fedserver export` writes models from the state directory, `evaluate` scores one"
    if made.rounds:
        hint = f"mend it and start the server again with the same --state, which makes it all; {hint}"
    log.error("finished, but not all was made", reason=reason, missing=" and ".join(made.missing), hint=hint, **there)
    return ExitCode.FAILED


def announce(config: ServerConfig, listening: Listening) -> None:
    """Show the effective configuration, and the command with which a site joins."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    effective = json.loads(config.model_dump_json())
    if console.is_terminal:
        for key, value in effective.items():
            console.print(f"  {key} = {json.dumps(value)}", markup=False)
    else:
        log.info("configuration", **effective)
    metrics = {"metrics": f"http://{listening.metrics_address}/metrics"} if listening.metrics_address else {}
    log.info("serving", address=listening.address, fingerprint=listening.fingerprint, **metrics)
    console.print(
        f"\n[bold]{escape(config.name)}[/bold]: {config.task}, {config.rounds} rounds, at least {config.min_clients} "
        f"sites a round, {config.strategy}."
    )
    console.print(f"{_how_sites_join(config)}:\n")
    console.print(f"    {join_command(config, listening)}\n", markup=False)
    if config.holdout is None:
        console.print(f"{_without_holdout(config)}\n")


def _without_holdout(config: ServerConfig) -> str:
    said = "No --holdout was given: global models are not scored"
    if not config.early_stopping_rounds:
        return f"{said}."
    return f"{said}, and --early-stopping-rounds, which goes by the scores, never ends the federation."


def _how_sites_join(config: ServerConfig) -> str:
    if config.plaintext or config.open_enrolment:
        return "Whoever has this command can join, under any name"
    return "Invite each site by its name, and send it the command that this prints"


def join_command(config: ServerConfig, listening: Listening) -> str:
    """The exact command for the next step: the coordinator's, to invite a site, or where names are free, a site's."""
    address = reached_as(listening.address, config.advertise)
    host, _ = split_address(listening.address)
    note = f"    # this server listens on loopback only: add --listen {shlex.quote(beyond_loopback(listening.address))}"
    note = note if is_loopback(host) and not config.plaintext else ""
    if listening.enrolment_address is not None:
        return shlex.join(["fedserver", "invite", "SITE_NAME", "--state", str(config.state)]) + note
    words = ["fedclient", "run", "--server", address]
    words += ["--fingerprint", listening.fingerprint] if listening.fingerprint else ["--plaintext"]
    words += ["--name", "SITE_NAME", "--data", "DATA_FOLDER"]
    if ":" in config.task:
        words += ["--task", config.task]
    return shlex.join(words) + note
