"""A client from start to end: prepare, hold one session after another, and save what came out.

DESCRIBE the task --> PREPARE worker and data --> SESSION --> (cut: again from the start) --> SAVE the final model

A client that was killed after it had heard the end goes to SAVE by itself if the server is not there any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

from fedclient import final_models
from fedclient.calls import Patience, plain_words, until_done
from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.display import Display
from fedclient.ending import Ending, EndingNote
from fedclient.events import FederationOutcome, RoundOutcome, TaskOnOffer
from fedclient.exit_codes import ExitCode, Stop, refused
from fedclient.full_disk import RETRY_SECONDS, disk_words
from fedclient.identity import IdentityFolder
from fedclient.introduction import introduce
from fedclient.proxies import proxy_hint
from fedclient.renewal import keep_renewed, renew_if_due
from fedclient.session import EnoughRounds, Session
from fedclient.workplace import Workplace, unusable
from fedstream import limits
from fedstream.checkup.machine import judge_folder
from fedstream.checkup.runner import Verdict
from fedstream.errors import (
    LimitExceeded,
    NameMismatch,
    PermissionDenied,
    ProtocolError,
    Superseded,
    TransportError,
    Unauthenticated,
)
from fedstream.files import FileSystem, RealFileSystem, make_durable
from fedstream.room import comes_room
from fedstream.sizes import part_of
from fedtask.task import TaskError
from fedtask.worker import WorkerCrashed

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
        self._final: final_models.FinalModels | None = None
        self._note = EndingNote(config.state_folder / "ending.json", self._files)
        self._heard_at = time.monotonic()  # the end; for one that an earlier process heard, when this one began

    async def run(self) -> str:
        """Take part until the federation ends; returns how it ended, in words for people.

        Raises:
            Stop: with the exit code and what to do.
        """
        await comes_room((self._config.state_folder, self._config.out_folder), limits.WINDOW_BYTES, RETRY_SECONDS)
        lock = self._lock()
        try:
            self._require_out_folder()
            return await self._run()
        finally:
            lock.release()

    def _lock(self) -> FileLock:
        folder = self._config.state_folder
        lock = FileLock(folder / "lock", timeout=0)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock.acquire()
        except Timeout as error:
            message = f"another fedclient uses {folder}: stop it, or give this one another --name or --state-dir"
            raise Stop(ExitCode.BAD_CONFIGURATION, message) from error
        except OSError as error:
            raise unusable(folder, error) from error
        return lock

    def _require_out_folder(self) -> None:
        """See that models can be written, before rounds of work: that they cannot would be found at the end."""
        judged = judge_folder(self._config.out_folder, 1, 1)
        if judged.verdict is Verdict.FAILED:
            raise Stop(ExitCode.BAD_CONFIGURATION, f"--out: {judged.found}. {judged.advice}")

    def _require_data(self) -> None:
        """See that the data is there: a slip in its path would be told only when a server has answered."""
        data = self._config.data
        if data is not None and not data.exists():
            wanted = "give the folder that holds train/, the file that the task reads, or `phantom`, as --data"
            raise Stop(ExitCode.BAD_DATA, f"there is no file or folder {data} (looked from {Path.cwd()}); {wanted}")

    async def leave(self, reason: str) -> None:
        """Tell the server that this client goes, if there is a session."""
        if self._session is not None:
            await self._session.leave(reason)

    async def _run(self) -> str:
        self._note.load()
        if self._note.ending is None:  # else it may be over, and nothing is left to train
            self._require_data()
        try:
            return await self._finish(await self._take_part())
        except EnoughRounds as enough:
            return await self._end_early(str(enough))
        finally:
            if self._place is not None:
                await self._place.close()
            await self._connection.close()

    # One session after another.

    async def _take_part(self) -> FederationOutcome:
        try:
            return await until_done(self._until_over, lambda: self._sessions, self._patience, "talking to the server")
        except TransportError as error:
            because = plain_words(error) + proxy_hint(self._config.server)
            message = f"no contact to {self._config.server} for {self._config.give_up_after} s: {because}"
            raise Stop(ExitCode.UNREACHABLE, message) from error
        except LimitExceeded as error:
            message = f"{self._config.server} took no client for {self._config.give_up_after} s: {error.message}"
            raise Stop(ExitCode.UNREACHABLE, message) from error

    async def _until_over(self) -> FederationOutcome:
        """One session; or the end that was heard before, if the server cannot be asked again."""
        before = self._sessions
        try:
            return await self._one_session()
        except TransportError as error:
            noted = self._note.ending
            if noted is None or self._sessions > before or not await self._needs_nobody(noted):
                raise
            hint = "if there are to be more rounds, start this site again when the server is there"
            log.warning("the server has said before that the federation is over", now=plain_words(error), hint=hint)
            return noted.outcome

    async def _needs_nobody(self, noted: Ending) -> bool:
        """Whether a client that knows of the end is to end without the server: it has all, or has waited for it."""
        if noted.server != self._connection.server:
            return False
        if noted.is_saved:
            return True
        place = await self._prepare(noted.task)
        self._final = final_models.find_models(noted.outcome, place.tools.models)
        return self._final is not None or time.monotonic() > self._heard_at + final_models.FETCH_SECONDS

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
            raise refused(error) from error
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
            advice = "names must be unique, give another --name"
            if self._config.identity is not None:
                advice = "its identity is in use twice, here and elsewhere: stop one of the two"
            return Stop(ExitCode.REPLACED, f"another client called {self._config.name} took over: {advice}")
        return TransportError("a newer session of the same name took over")

    async def _talk(self, place: Workplace) -> FederationOutcome:
        def on_welcome() -> None:
            self._sessions += 1

        async def goes_on() -> None:
            if self._note.ending is not None:  # next to never, and the server says it often
                await asyncio.to_thread(self._note.forget)

        async def collect(outcome: FederationOutcome) -> None:
            await self._collect(place, outcome)

        def on_round(event: RoundOutcome) -> None:
            place.errands.add(asyncio.create_task(place.fetch_ahead(event)))

        schema = place.tools.site.description.schema
        hello = introduce(self._config, place.tools.site, place.tools.memory.experience)
        call = self._connection.negotiation.Negotiate()
        self._session = Session(call, schema, place.offers, self._display, self._news, on_round, goes_on, collect)
        try:
            async with self._kept_renewed():
                return await self._session.run(hello, on_welcome)
        finally:
            self._session = None

    # Preparing.

    async def _prepare(self, task: TaskOnOffer) -> Workplace:
        """The place to work on that task: the one there is, unless the server's task has changed."""
        noted = self._note.ending
        if noted is not None and noted.task != task:  # another federation, in the same state folder
            await asyncio.to_thread(self._note.forget)
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

    async def _end_early(self, reason: str) -> str:
        """End before the federation does, as the site's limit says."""
        assert self._place is not None
        await self._place.settle()
        self._place.forget_weights()
        return f"left: {reason}. The federation goes on; ask the coordinator for its final model"

    async def _collect(self, place: Workplace, outcome: FederationOutcome) -> None:
        """Have on disk, for good, all that the end takes: the server leaves when it is told that this is done."""
        self._heard_at = time.monotonic()
        noted = Ending(self._connection.server, place.task, outcome, self._saved(outcome))
        is_noted = await self._write_note(noted)
        if noted.saved is not None:
            return
        tools = place.tools
        tools.global_models.keep_final(outcome)
        try:
            self._final = await final_models.fetch_models(outcome, tools.site, tools.downloader, self._show_fetched)
        except OSError as error:  # and the server is not told that all is here; but it leaves when no site is with it
            where = disk_words(error, self._config.state_folder)
            hint = "The server leaves as soon as its sites have: ask the coordinator for the final model"
            message = f"{final_models.describe(outcome)}\nbut its final model could not be kept ({where}). {hint}"
            raise Stop(ExitCode.BAD_CONFIGURATION, message) from error
        if not is_noted:  # the disk has taken the models since
            await self._write_note(noted)
        try:
            await asyncio.to_thread(tools.models.make_durable)
        except OSError as error:
            log.warning("a power cut may undo the final model: the disk refuses to sync it", because=str(error))

    async def _write_note(self, noted: Ending) -> bool:
        try:
            await asyncio.to_thread(self._note.write, noted)
        except OSError as error:
            log.warning("that the federation is over could not be noted", because=str(error))
            return False
        return True

    def _show_fetched(self, done: int, total: int) -> None:
        self._display.idle(f"fetching the final model: {part_of(done, total)}")

    def _saved(self, outcome: FederationOutcome) -> tuple[Path, ...] | None:
        """The files of these final models, if this process or an earlier one has saved them."""
        noted = self._note.ending
        return noted.saved if noted is not None and noted.is_saved and noted.has_models_of(outcome) else None

    async def _finish(self, outcome: FederationOutcome) -> str:
        text = final_models.describe(outcome)
        paths: Sequence[Path] | None = self._saved(outcome)
        if paths is None:
            paths = await self._save(text)
        if self._place is not None:
            self._place.forget_weights()
        return "\n".join([text, "saved " + ", ".join(str(path) for path in paths)])

    async def _save(self, text: str) -> Sequence[Path]:
        place, noted = self._place, self._note.ending
        assert place is not None
        assert noted is not None
        await place.settle()
        if self._final is None:
            message = f"{text}\nbut its final model could not be fetched: ask the coordinator for it"
            raise Stop(ExitCode.UNREACHABLE, message)
        self._display.idle("saving the final model")
        try:
            paths = await final_models.save_models(self._final, place.task.task_name, place.tools.trainer)
        except (TaskError, WorkerCrashed, OSError) as error:
            message = f"{text}\nbut its model could not be saved in {self._config.out_folder} ({error})"
            hint = "it is kept: mend that, or give another --out, and start this site again"
            raise Stop(ExitCode.BAD_CONFIGURATION, f"{message}; {hint}") from error
        # Before the weights go: a client that is killed in between must not look for them.
        await asyncio.to_thread(self._note_saved, noted, paths)
        return paths

    def _note_saved(self, noted: Ending, paths: Sequence[Path]) -> None:
        try:
            for path in paths:
                make_durable(self._files, path)
            self._note.write(replace(noted, saved=tuple(path.resolve() for path in paths)))
        except OSError as error:
            log.warning("a power cut may undo what was saved: the disk refuses to sync it", because=str(error))
