"""What the work on offers is done with. `fedclient.workplace` puts it together for a task; one job at a time has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from fedclient.calls import Patience
from fedclient.connection import Connection
from fedclient.display import Display
from fedclient.download import Downloader
from fedclient.global_models import GlobalModels
from fedclient.keepsakes import Keepsakes
from fedclient.memory import SiteMemory
from fedclient.models import LocalModel, ModelStore
from fedclient.packing import Packer
from fedclient.reporting import Reporting
from fedclient.training import Site, Trainer
from fedclient.updates import FinishedUpdate, UpdateStore


@dataclass(frozen=True, slots=True)
class Tools:
    """What a job works with.

    `on_news` is to be called when the work has got on. `turn` is held by the job that works here, until nothing of it
    runs any more.
    """

    connection: Connection
    site: Site
    trainer: Trainer
    models: ModelStore
    downloader: Downloader
    global_models: GlobalModels
    updates: UpdateStore
    packer: Packer
    memory: SiteMemory
    display: Display
    patience: Patience
    keepsakes: Keepsakes
    reporting: Reporting
    on_news: Callable[[], None]
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def keep(self, base: LocalModel, finished: FinishedUpdate) -> None:
        """See to what is kept of a fine-tune for people. Idempotent."""
        self.memory.add_history(finished.round, finished.update.history)
        await self.keepsakes.trained(base, finished, self.memory.rows)
