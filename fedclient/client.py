"""A client from start to end: prepare, hold one session after another, and save what came out.

DESCRIBE the task --> PREPARE worker and data --> SESSION --> (cut: again from the start) --> SAVE the final model
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import structlog
from filelock import FileLock, Timeout

from fedclient import outcome
from fedclient.calls import Patience, plain_words, until_done
from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.display import Display
from fedclient.events import FederationOutcome, RoundOutcome, TaskOnOffer
from fedclient.exit_codes import ExitCode, Stop
from fedclient.identity import IdentityFolder
from fedclient.introduction import introduce
from fedclient.renewal import keep_renewed, renew_if_due
from fedclient.session import EnoughRounds, Session
from fedclient.workplace import Workplace
from fedstream.errors import (
    LimitExceeded,
    NameMismatch,
    PermissionDenied,
    ProtocolError,
    Superseded,
    TransportError,
    Unauthenticated,
)
from fedstream.files import FileSystem, RealFileSystem

log = structlog.get_logger()

_RIVAL_SECONDS = 300.0
"""Being superseded twice within this time means that another process uses the name. Once may be a stream of our own
that a broken network delivered late."""


class Client:
    """One site's part in one federation.

    Args:
        config: the site's settings.
        display: for people.
        patience: how to come back; by default as the settings say.
        files: the file system.
    """

    def __init__(
        self, config: ClientConfig, display: Display, patience: Patience | None = None, files: FileSystem | None = None
    ) -> None:
        self._config = config
        self._display = display
        self._patience = patience or Patience(give_up_after_seconds=config.give_up_after)
        self._files = files or RealFileSystem()
        self._connection = Connection(config)
        self._news = asyncio.Event()
        self._sessions = 0
        self._superseded_at: float | None = None
        self._session: Session | None = None
        self._place: Workplace | None = None
        self._final: outcome.FinalModels | None = None

    async def run(self) -> str:
        """Take part until the federation ends; returns how it ended, in words for people.

        Raises:
            Stop: with the exit code and what to do.
        """
        folder = self._config.state_folder
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0)
        try:
            with lock:
                return await self._run()
        except Timeout as error:
            message = f"another fedclient uses {folder}: stop it, or give this one another --name or --state-dir"
            raise Stop(ExitCode.BAD_CONFIGURATION, message) from error

    async def leave(self, reason: str) -> None:
        """Tell the server that this client goes, if there is a session."""
        if self._session is not None:
            await self._session.leave(reason)

    async def _run(self) -> str:
        try:
            ending = await self._take_part()
            return await self._save(ending)
        except EnoughRounds as enough:
            return await self._go(str(enough))
        finally:
            if self._place is not None:
                await self._place.close()
            await self._connection.close()

    # One session after another.

    async def _take_part(self) -> FederationOutcome:
        try:
            return await until_done(self._one_session, lambda: self._sessions, self._patience, "talking to the server")
        except TransportError as error:
            message = f"no contact to {self._config.server} for {self._config.give_up_after} s: {plain_words(error)}"
            raise Stop(ExitCode.UNREACHABLE, message) from error

    async def _one_session(self) -> FederationOutcome:
        self._display.idle(f"connecting to {self._config.server}")
        try:
            await self._connection.open()
            await self._renew()
            place = await self._prepare(await self._connection.describe_task())
            return await self._talk(place)
        except Superseded as error:
            raise self._judge_rival() from error
        except (Unauthenticated, PermissionDenied, NameMismatch) as error:
            raise Stop(ExitCode.UNTRUSTED, f"{error.message}: ask the coordinator") from error
        except LimitExceeded:
            raise
        except ProtocolError as error:
            message = f"the server refused this client's message ({error.reason}): {error.message}"
            raise Stop(ExitCode.DEFECT, f"{message}. This is a defect; please report it with the log") from error

    async def _renew(self) -> None:
        """See to the site's certificate before a session."""
        identity = self._config.identity
        if identity is not None and await renew_if_due(IdentityFolder(identity), self._connection):
            await self._connection.reopen()

    @contextlib.asynccontextmanager
    async def _kept_renewed(self) -> AsyncIterator[None]:
        """And during one: the connection is made anew with the next certificate, and the session comes back."""
        identity = self._config.identity
        if identity is None:
            yield
            return
        folder = IdentityFolder(identity)
        task = asyncio.create_task(keep_renewed(folder, self._connection, self._connection.reopen))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _judge_rival(self) -> Exception:
        now, before = time.monotonic(), self._superseded_at
        self._superseded_at = now
        if before is not None and now - before < _RIVAL_SECONDS:
            message = f"another client called {self._config.name} took over: names must be unique, give another --name"
            return Stop(ExitCode.REPLACED, message)
        return TransportError("a newer session of the same name took over")

    async def _talk(self, place: Workplace) -> FederationOutcome:
        def on_welcome() -> None:
            self._sessions += 1

        async def collect(ending: FederationOutcome) -> None:
            self._final = await outcome.fetch_models(ending, place.shop.site, place.shop.downloader)

        def on_round(event: RoundOutcome) -> None:
            place.errands.add(asyncio.create_task(place.shop.global_models.fetch_ahead(event)))

        schema = place.shop.site.description.schema
        hello = introduce(self._config, place.shop.site, place.shop.memory.experience)
        call = self._connection.negotiation.Negotiate()
        self._session = Session(call, schema, place.bench, self._display, self._news, on_round, collect)
        try:
            async with self._kept_renewed():
                return await self._session.run(hello, on_welcome)
        finally:
            self._session = None

    # Preparing.

    async def _prepare(self, task: TaskOnOffer) -> Workplace:
        """The place to work on that task: the one there is, unless the server's task has changed."""
        if self._place is not None and self._place.task == task:
            return self._place
        if self._place is not None:
            log.warning("the server has another task now; starting anew", task=task.task_name)
            await self._place.close()
            self._place = None
        structlog.contextvars.bind_contextvars(task=task.task_name)
        self._display.idle(f"preparing {task.task_name}: model and data")
        log.info("federation", name=task.federation_name, task=task.task_name, settings=dict(task.settings))
        self._place = await Workplace.open(
            task, self._config, self._connection, self._display, self._patience, self._files, self._news.set
        )
        return self._place

    # The end.

    async def _go(self, reason: str) -> str:
        """End before the federation does, as the site's limit says."""
        assert self._place is not None
        await self._place.settle()
        self._place.forget_weights()
        return f"left: {reason}. The federation goes on; ask the coordinator for its final model"

    async def _save(self, ending: FederationOutcome) -> str:
        text = outcome.describe(ending)
        place = self._place
        assert place is not None
        await place.settle()
        if self._final is None:
            message = f"{text}\nbut its final model could not be fetched: ask the coordinator for it"
            raise Stop(ExitCode.UNREACHABLE, message)
        self._display.idle("saving the final model")
        paths = await outcome.save_models(self._final, place.task.task_name, place.shop.trainer)
        place.forget_weights()
        return "\n".join([text, "saved " + ", ".join(str(path) for path in paths)])
