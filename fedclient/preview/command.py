"""What a preview is made from: the task, from the server or as the person says, and the site's data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping

from fedclient.calls import plain_words
from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.events import TaskOnOffer
from fedclient.exit_codes import ExitCode, Stop
from fedclient.memory import SiteMemory
from fedclient.preview.messages import Facts, sample_messages
from fedclient.preview.show import as_json as shown_as_json
from fedclient.preview.show import as_lines
from fedclient.training import Trainer
from fedstream.errors import FedstreamError, TransportError
from fedstream.files import RealFileSystem

NOWHERE = {"server": "127.0.0.1:0", "plaintext": True}
"""Settings that stand in for a server where none is asked."""


def run_preview(
    config: ClientConfig, settings: Mapping[str, str], say: Callable[[str], None], *, as_json: bool
) -> None:
    """Show what would leave.

    Args:
        config: the site's.
        settings: of the task, where no server is asked.
        say: takes a line of output.
        as_json: one object instead of lines.

    Raises:
        Stop: the server cannot be asked, or the task or the data cannot be used.
    """
    facts, learns = asyncio.run(_look(config, settings))
    messages = sample_messages(facts)
    if as_json:
        say(json.dumps(shown_as_json(facts, messages, learns), indent=2))
        return
    for line in as_lines(facts, messages, learns):
        say(line)


async def _look(config: ClientConfig, settings: Mapping[str, str]) -> tuple[Facts, str]:
    task = await _ask(config, settings)
    trainer = Trainer(task, config)
    try:
        site = await trainer.open()
    finally:
        await trainer.close()
    memory = SiteMemory(config.state_folder / "memory.json", task.federation_name, RealFileSystem())
    names = dict.fromkeys(name for row in memory.rows for name in row if name not in ("round", "epoch"))
    asked = f" in {task.federation_name!r}" if task.federation_name else ", as named here and not by a server"
    learns = f"{task.task_name}{asked}"
    return Facts(config, site, memory.experience, list(names)), learns


async def _ask(config: ClientConfig, settings: Mapping[str, str]) -> TaskOnOffer:
    if config.server == NOWHERE["server"]:
        if config.task is None:
            message = "name the server with --server HOST:PORT, or, to ask none, the task with --task"
            raise Stop(ExitCode.BAD_CONFIGURATION, message)
        return TaskOnOffer("", config.task, settings)
    connection = Connection(config)
    try:
        await connection.open()
        return await connection.describe_task()
    except Stop:
        raise
    except FedstreamError as error:
        if config.task is not None and isinstance(error, TransportError):
            # A site that has joined has a server in any case, and may want to look before that runs.
            return TaskOnOffer("", config.task, settings)
        message = (
            f"{plain_words(error)}; without the server, name the task with --task, and its settings with --task-set"
        )
        raise Stop(ExitCode.UNREACHABLE, message) from error
    finally:
        await connection.close()
