"""A process of its own for everything slow: building, training, evaluating, plotting.

The process that talks to the network stays small and quick, and neither a crash nor a leak nor a long epoch in here can
cost it the connection. A worker that died is started anew by the next call, with its data opened again.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from fedstream.plan import Plan
from fedtask.messages import LocalUpdate, TaskDescription, from_json, to_json
from fedtask.task import Cancelled, EpochReport, Evaluation, SiteOptions, SiteSummary, TaskError

log = structlog.get_logger()

_LINE_LIMIT_BYTES = 64 << 20  # one answer is one line; a schema of 65,536 tensors takes about 10 MB
_HEED_A_CANCEL = frozenset({"fine_tune"})
"""Methods that end when they are told to, at their next report."""
_STOP_SECONDS = 15.0
"""How long such a method may take to notice that it is not wanted, before its process is ended."""
_KEPT_LINES = 5
_LONGEST_LINE = 200
_READ_BYTES = 1 << 16
_ENDS_OF_LINES = re.compile(rb"[\r\n]")
_LAST_WORDS_SECONDS = 1.0
"""For what a process that has ended left in its pipes, which is there already: they are closed after it."""

_OnNews = Callable[[Mapping[str, Any]], None]
"""Takes what a worker says of a request before its answer: how far it is."""


class WorkerCrashed(Exception):
    """The worker process ended by itself. The message has its exit status and what ended it, or its last words."""


class TaskWorker:
    """The near end of one worker process. One call runs at a time; further ones wait their turn.

    To cancel a call ends the process, but for `fine_tune`. It holds nothing that the next call could not make again.

    Args:
        reference: the task, as `fedtask.registry.create_task` takes it.
        settings: the task's settings.
    """

    def __init__(self, reference: str, settings: Mapping[str, str]) -> None:
        self._start = {"task": reference, "settings": dict(settings)}
        self._process: asyncio.subprocess.Process | None = None
        self._last_words: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._listener: asyncio.Task[None] | None = None
        self._opened: tuple[str, dict[str, Any]] | None = None
        self._numbers = itertools.count(1)
        self._turn = asyncio.Lock()
        self._draining: asyncio.Task[None] | None = None

    async def describe(self) -> TaskDescription:
        """The task's meaning, schema and default plan."""
        return from_json(TaskDescription, await self._call("describe"))

    async def initial_weights(self, seed: int, source: str | None, out: Path) -> None:
        """Write the weights of round 0 to `out`."""
        await self._call("initial_weights", seed=seed, source=source, out=str(out))

    async def open_site(self, options: SiteOptions) -> SiteSummary:
        """Open a site's data; see `Task.open_site`."""
        return await self._open("open_site", {"options": to_json(options)})

    async def open_holdout(self, folder: Path | None, classes: Mapping[str, str]) -> SiteSummary:
        """Open a holdout; see `Task.open_holdout`."""
        params = {"folder": str(folder) if folder is not None else None, "classes": dict(classes)}
        return await self._open("open_holdout", params)

    async def fine_tune(
        self,
        base: Path,
        plan: Plan,
        out: Path,
        on_report: Callable[[EpochReport], None],
        on_trained: Callable[[], None] = lambda: None,
    ) -> LocalUpdate:
        """Fine-tune from the weights file `base` and write the changed tensors to `out`, durably.

        `on_trained` is called when that is to be written, for which a disk may have to be waited.

        Raises:
            asyncio.CancelledError: as any awaitable; the worker stops at its next report and stays usable. One that
                does not report within seconds is ended.
        """

        def on_news(message: Mapping[str, Any]) -> None:
            if "report" in message:
                on_report(from_json(EpochReport, message["report"]))
            else:
                on_trained()

        params = {"base": str(base), "plan": to_json(plan), "out": str(out)}
        return from_json(LocalUpdate, await self._call("fine_tune", on_news, **params))

    async def evaluate(self, weights: Path) -> Evaluation:
        """Score a weights file on the opened holdout."""
        return from_json(Evaluation, await self._call("evaluate", weights=str(weights)))

    async def export(self, weights: Path, folder: Path, stem: str, changes: Path | None = None) -> list[Path]:
        """Write the model for use without this project; returns the files.

        Args:
            weights: the file with all tensors.
            folder: where the files go; it is made if it is not there.
            stem: what they are called.
            changes: a file with those tensors that are to take the place of the ones in `weights`.
        """
        changed = str(changes) if changes is not None else None
        written = await self._call("export", weights=str(weights), folder=str(folder), stem=stem, changes=changed)
        return [Path(path) for path in written]

    async def read_model(self, path: Path, out: Path) -> None:
        """Read a model file and write its weights to `out`."""
        await self._call("read_model", path=str(path), out=str(out))

    async def render_report(self, record: Any, folder: Path, *, pictures: bool) -> None:
        """Write a federation's report; `record` is the JSON form of `fedtask.report.FederationRecord`."""
        await self._call("render_report", record=record, folder=str(folder), pictures=pictures)

    async def close(self) -> None:
        """End the process, and those it has started. Safe to call twice."""
        process, self._process = self._process, None
        listener = self._listener  # of this process: the next call may start another meanwhile
        if process is None:
            return
        if process.returncode is None:
            _kill_all(process.pid)  # it keeps no state that could be lost: results are on disk before they are told
        await process.wait()
        if listener is not None:
            await listener

    async def _open(self, method: str, params: dict[str, Any]) -> SiteSummary:
        self._opened = None
        summary = from_json(SiteSummary, await self._call(method, **params))
        self._opened = (method, params)
        return summary

    async def _call(self, method: str, on_news: _OnNews | None = None, **params: Any) -> Any:
        async with self._turn:
            if self._draining is not None:  # of a caller that was cancelled twice, and did not wait for it
                await asyncio.wait({self._draining})
                self._draining = None
            if self._process is None or self._process.returncode is not None:
                await self._spawn()
            return await self._request(method, params, on_news)

    async def _spawn(self) -> None:
        self._last_words.clear()  # those of an earlier process explain nothing of this one
        environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1", "PYTHONUNBUFFERED": "1", **os.environ}
        loop = asyncio.get_running_loop()
        transport, pipes = await loop.subprocess_exec(
            lambda: _Pipes(_LINE_LIMIT_BYTES, loop),
            sys.executable,
            "-m",
            "fedtask.worker_main",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is for the parent, which ends the worker in good order
        )
        self._process = asyncio.subprocess.Process(transport, pipes, loop)
        self._listener = asyncio.create_task(self._listen(self._process))
        try:
            await self._write(self._start)
            await self._read_result(0, None)
            if self._opened is not None:
                await self._request(*self._opened, None)
        except BaseException:  # one that has not come so far is no worker to the next call
            await asyncio.shield(self.close())
            raise

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Take in what it says on standard error, however long a line is: a bar of progress may be one without end."""
        assert process.stderr is not None
        begun = b""
        while said := await process.stderr.read(_READ_BYTES):
            *lines, begun = _ENDS_OF_LINES.split(begun + said)
            if len(begun) > _READ_BYTES:
                lines, begun = [*lines, begun], b""
            self._note(lines)
        self._note([begun])

    def _note(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            if text := line.decode(errors="replace").rstrip():
                self._last_words.append(text)
                log.debug("worker", said=text)

    async def _request(self, method: str, params: dict[str, Any], on_news: _OnNews | None) -> Any:
        number = next(self._numbers)
        await self._write({"id": number, "method": method, "params": params})
        try:
            return await self._read_result(number, on_news)
        except asyncio.CancelledError:
            if method not in _HEED_A_CANCEL:  # to read a large folder may take minutes; the next call begins it anew
                await asyncio.shield(self.close())
                raise
            # The answer to a cancelled request still comes: take it in, so that the next one finds its own.
            self._draining = asyncio.create_task(self._drain(number))
            await asyncio.shield(self._draining)
            raise

    async def _drain(self, number: int) -> None:
        if self._process is None:  # closed meanwhile: no answer comes any more
            return
        try:
            with contextlib.suppress(WorkerCrashed, TaskError, Cancelled):
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._write({"cancel": number})
                    await self._read_result(number, None)
        except TimeoutError:
            log.warning("training does not stop by itself; ending its process")
            await self.close()

    async def _write(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        with contextlib.suppress(ConnectionError):  # the reader of the answer says what happened
            await self._process.stdin.drain()

    async def _read_result(self, number: int, on_news: _OnNews | None) -> Any:
        process = self._process  # `close` may forget it while the answer is awaited
        assert process is not None and process.stdout is not None
        while (line := await process.stdout.readline()).endswith(b"\n"):  # half a line is its end as well
            message = json.loads(line)
            if message["id"] != number:
                continue
            if "report" in message or "trained" in message:
                if on_news is not None:
                    on_news(message)
            elif "trouble" in message:
                log.warning("the worker process waits", because=message["trouble"])
            elif "error" in message:
                raise TaskError(message["error"])
            elif "cancelled" in message:
                raise Cancelled
            elif "crash" in message:
                raise await self._crash(process, message["crash"])
            else:
                return message["result"]
        raise await self._crash(process)

    async def _crash(self, process: asyncio.subprocess.Process, told: Sequence[str] = ()) -> WorkerCrashed:
        """What to raise once it has ended; `told` is what it said of its end in good time, the error itself first."""
        status = await process.wait()
        if self._listener is not None:
            await self._listener
        ended = f"the worker process ended with status {status}"
        if status == -signal.SIGKILL and process is self._process:  # and not by `close`
            ended += ", killed: perhaps this machine has too little memory"
        if told:
            error, *places = (line[:_LONGEST_LINE] for line in told)
            return WorkerCrashed("\n".join([f"{error} ({ended})", *places]))
        last_words = "\n".join(line[:_LONGEST_LINE] for line in self._last_words) or "it said nothing"
        return WorkerCrashed(f"{ended}; its last words:\n{last_words}")


class _Pipes(asyncio.subprocess.SubprocessStreamProtocol):
    """The pipes of a process, which end soon after it, whatever it leaves behind.

    Their end is what tells that a worker is gone. But a task's own helpers, such as those that load data, hold them as
    well: where one outlives the worker, the end would not come before that one's.
    """

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit, loop)
        self._ends_with: asyncio.SubprocessTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._ends_with = transport

    def process_exited(self) -> None:
        super().process_exited()
        transport = self._ends_with
        assert transport is not None, "a process is started before it ends"
        _kill_all(transport.get_pid())
        # One with a session of its own is not reached by that.
        asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, transport.close)


def _kill_all(leader: int) -> None:
    """Kill a worker with all that it has started. Its session keeps the number until the last of them is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter where only a dead one is left, on a Mac
        os.killpg(leader, signal.SIGKILL)
