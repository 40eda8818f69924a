"""What a client sets up for one task and keeps over all its sessions: worker, data, stores, and the work on offers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from fedclient.calls import Patience
from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.display import Display
from fedclient.download import Downloader
from fedclient.events import RoundOutcome, TaskOnOffer
from fedclient.exit_codes import ExitCode, Stop
from fedclient.global_models import GlobalModels
from fedclient.keepsakes import Keepsakes
from fedclient.memory import SiteMemory
from fedclient.models import ModelStore
from fedclient.offers import Offers
from fedclient.packing import Packer
from fedclient.tools import Tools
from fedclient.training import Trainer
from fedclient.updates import UpdateStore
from fedstream.files import FileSystem
from fedstream.manifest import Digest

log = structlog.get_logger()


def unusable(state_folder: Path, error: OSError) -> Stop:
    """That a state folder cannot be used, why, and what to do: `raise unusable(...)`."""
    where = f"{error.filename}: " if error.filename else ""
    why = f"the state folder {state_folder} cannot be used ({where}{error.strerror or error})"
    return Stop(ExitCode.BAD_CONFIGURATION, f"{why}; name one with --state-dir that this user may write to")


@dataclass(slots=True)
class Errands:
    """Work that goes on beside the rounds, such as fetching a model ahead; its failures cost nothing else."""

    running: set[asyncio.Task[None]] = field(default_factory=set)

    def add(self, task: asyncio.Task[None]) -> None:
        """See a task to its end."""
        self.running.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("work beside the rounds failed", because=str(error) or repr(error))

    async def finish(self) -> None:
        """Wait for all of it."""
        await asyncio.gather(*self.running, return_exceptions=True)

    async def cancel(self) -> None:
        """Stop all of it."""
        for task in self.running:
            task.cancel()
        await self.finish()


@dataclass(frozen=True, slots=True)
class Workplace:
    """A task, ready to work on."""

    task: TaskOnOffer
    tools: Tools
    offers: Offers
    errands: Errands
    cache_folder: Path

    @classmethod
    async def open(
        cls,
        task: TaskOnOffer,
        config: ClientConfig,
        connection: Connection,
        display: Display,
        patience: Patience,
        files: FileSystem,
        on_news: Callable[[], None],
    ) -> Workplace:
        """Start the worker, read the data and what earlier runs have left on disk.

        Raises:
            Stop: the task or the data cannot be used, or the state folder cannot be written.
        """
        trainer, state = Trainer(task, config), config.state_folder
        try:
            site = await trainer.open()
            models = ModelStore(state / "models", files)
            await asyncio.to_thread(models.load)
            # Whether the server is gone for good is the session's to judge; a transfer waits as long as it goes on.
            lasting = Patience(patience.first_seconds, patience.longest_seconds)
            downloader = Downloader(connection, models, files, lasting)
            updates = UpdateStore(state / "updates", files)
            tools = Tools(
                connection=connection,
                site=site,
                trainer=trainer,
                models=models,
                downloader=downloader,
                global_models=GlobalModels(downloader, site.description.schema),
                updates=updates,
                packer=Packer(updates, state / "left_out.safetensors", task.federation_name, files),
                memory=SiteMemory(state / "memory.json", task.federation_name, files),
                display=display,
                patience=lasting,
                keepsakes=Keepsakes(trainer, pictures=config.pictures),
                reporting=config.reporting,
                on_news=on_news,
            )
        except BaseException as error:
            await trainer.close()
            if isinstance(error, OSError):
                raise unusable(state, error) from error
            raise
        return cls(task, tools, Offers(tools, config.site_limits), Errands(), config.cache_folder)

    async def fetch_ahead(self, outcome: RoundOutcome) -> None:
        """Fetch the model that a round has made, and drop those that are of no use any more."""
        await self.tools.global_models.fetch_ahead(outcome)
        await self._recall()  # what it started from must not go before it is saved for people
        if outcome.global_model is not None:
            await self.tools.global_models.keep_only(self._in_use)

    def _in_use(self) -> set[Digest]:
        job = self.offers.job
        return {*self.tools.keepsakes.bases, *([job.offer.base.digest] if job is not None else [])}

    async def settle(self) -> None:
        """End what is still being done for a round, and bring up to date what is kept for people.

        What is fetched ahead is of no use any more, and a server that has gone would be waited for without end.
        """
        await self.offers.close()
        await self._recall()
        await asyncio.gather(self.errands.cancel(), self.tools.keepsakes.finish())

    async def _recall(self) -> None:
        """Take up what an earlier process has trained: it may have ended before that was saved for people.

        Not once this process has trained itself, which may happen while the disk is read.
        """
        tools = self.tools
        if tools.keepsakes.has_any:
            return
        finished = await asyncio.to_thread(tools.updates.latest)
        base = tools.models.get(finished.base) if finished is not None else None
        if finished is not None and base is not None and not tools.keepsakes.has_any:
            await tools.keep(base, finished)

    def forget_weights(self) -> None:
        """Free the disk, once the federation is over and its models are saved for people.

        Also of what the task has computed of the site's data, which is next to the data itself. A disk that refuses, or
        is gone by then, costs nothing else.
        """
        shutil.rmtree(self.cache_folder, ignore_errors=True)
        try:
            self.tools.updates.keep_only(())
            self.tools.packer.forget()
            self.tools.models.keep_only(())
            self.tools.models.drop_partials()
        except OSError as error:
            log.warning("weights that are of no use any more could not be removed", because=str(error))

    async def close(self) -> None:
        """Stop all work, save what is yet to be saved for people, and end the worker. Safe to call twice."""
        stopping = asyncio.gather(self.errands.cancel(), self.offers.close())
        await asyncio.sleep(0)  # the work hears that it is to stop before it could take the worker's end for a crash
        await self.tools.keepsakes.close()
        await self.tools.trainer.close()
        await stopping
        try:
            await asyncio.to_thread(self.tools.memory.save)
        except OSError as error:
            log.warning("how long rounds take here could not be saved", because=str(error))
