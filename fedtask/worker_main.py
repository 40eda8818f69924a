"""The worker process: holds one task, does one thing at a time, and dies with the process that started it.

Requests come as JSON lines from what was standard input when the process began, answers and progress go as JSON lines
to what was standard output. Whatever libraries print goes to standard error, so that it cannot spoil an answer, and
standard input is empty for them, so that no program that a task starts takes a request away.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from fedstream.files import RealFileSystem, may_pass, refusal_words, write_durably
from fedstream.manifest import Manifest, TensorEntry, entry_of, manifest_of, raw_bytes
from fedstream.plan import Plan
from fedstream.weights_file import WeightsFile, file_parts
from fedtask.messages import EntryRecord, LocalUpdate, TaskDescription, from_json, to_json
from fedtask.registry import create_task
from fedtask.returned import checked_evaluation, checked_files, checked_report, checked_summary, checked_tuned
from fedtask.task import Cancelled, EpochReport, Evaluation, ReportWords, SiteOptions, Task, TaskError, Weights

_DISK_RETRY_SECONDS = 2.0
_SHOWN_PLACES = 3


class Worker:
    """Carries out requests on one task.

    Args:
        task: what to work on.
        send: takes one answer, a JSON object.
    """

    def __init__(self, task: Task, send: Callable[[dict[str, Any]], None]) -> None:
        self._task = task
        self._send = send
        self._cancelled: set[int] = set()
        self._schema = task.schema()
        self._methods: Mapping[str, Callable[..., Any]] = {
            "describe": self.describe,
            "initial_weights": self.initial_weights,
            "open_site": self.open_site,
            "open_holdout": self.open_holdout,
            "fine_tune": self.fine_tune,
            "evaluate": self.evaluate,
            "export": self.export,
            "read_model": self.read_model,
            "render_report": self.render_report,
        }

    def cancel(self, request: int) -> None:
        """Make the request end at its next report. Called from another thread; adding to a set is atomic."""
        self._cancelled.add(request)

    def answer(self, request: int, method: str, params: dict[str, Any]) -> None:
        """Carry out one request and send its result or its error."""
        try:
            result = self._methods[method](request, **params)
        except Cancelled:
            self._send({"id": request, "cancelled": True})
        except TaskError as error:
            self._send({"id": request, "error": str(error)})
        except Exception as error:
            self._send({"id": request, "crash": _crash_words(error)})
            raise  # whatever state it has left behind goes with this process, and its whole text to standard error
        else:
            self._send({"id": request, "result": result})

    def describe(self, _request: int) -> Any:
        words = getattr(self._task, "report_words", ReportWords())
        description = TaskDescription(self._task.meaning(), self._schema.tensors, self._task.default_plan(), words)
        return to_json(description)

    def initial_weights(self, request: int, seed: int, source: str | None, out: str) -> None:
        self._write_whole(request, Path(out), self._task.initial_weights(seed, source))

    def open_site(self, _request: int, options: dict[str, Any]) -> Any:
        return to_json(checked_summary(self._task.open_site(from_json(SiteOptions, options)), "open_site"))

    def open_holdout(self, _request: int, folder: str | None, classes: dict[str, str]) -> Any:
        summary = self._task.open_holdout(Path(folder) if folder is not None else None, classes)
        return to_json(checked_summary(summary, "open_holdout"))

    def fine_tune(self, request: int, base: str, plan: dict[str, Any], out: str) -> Any:
        started = time.monotonic()
        base_weights = WeightsFile(Path(base)).weights()
        report = partial(self._report, request)
        tuned = checked_tuned(self._task.fine_tune(base_weights, from_json(Plan, plan), report), self._schema)
        training_seconds = time.monotonic() - started  # and not for how long the disk may keep it waiting
        self._send({"id": request, "trained": True})
        changed = self._changed(base_weights, tuned.weights)
        self._write_when_it_can(
            request, Path(out), Manifest(tuple(changed)), tuned.weights, "what was trained", makes_folder=True
        )
        update = LocalUpdate(
            changed=tuple(EntryRecord.of(entry) for entry in changed),
            num_examples=tuned.num_examples,
            metrics=dict(tuned.metrics),
            history=tuple(dict(row) for row in tuned.history),
            epochs=len(tuned.history),
            training_seconds=training_seconds,
        )
        return to_json(update)

    def _write_when_it_can(
        self, request: int, out: Path, manifest: Manifest, weights: Weights, what: str, *, makes_folder: bool = False
    ) -> None:
        """Write what was made. While the disk refuses, say so and try again: making it anew would take longer.

        With `makes_folder`, a folder that somebody has cleared away is made again. Not those above it: where they are
        gone, they were moved or their disk is not mounted, and may come back with all that is in them.
        """
        told = ""
        while True:
            if makes_folder:
                with contextlib.suppress(OSError):  # the write says what is the matter
                    out.parent.mkdir(exist_ok=True)
            try:
                return write_durably(RealFileSystem(), out, file_parts(manifest, weights))
            except OSError as error:
                if not may_pass(error):
                    raise
                if refusal_words(error) != told:
                    told = refusal_words(error)
                    self._send({"id": request, "trouble": f"{what} cannot be written yet: {told}"})
            time.sleep(_DISK_RETRY_SECONDS)
            if request in self._cancelled:
                raise Cancelled

    def _changed(self, base: Weights, trained: Weights) -> list[TensorEntry]:
        # Comparing bytes rather than values: NaN differs from itself, and -0.0 does not from 0.0.
        names = [spec.name for spec in self._schema if raw_bytes(base[spec.name]) != raw_bytes(trained[spec.name])]
        return [entry_of(self._schema[name], trained[name]) for name in names]

    def _report(self, request: int, report: EpochReport) -> None:
        self._send({"id": request, "report": to_json(checked_report(report))})
        if request in self._cancelled:
            raise Cancelled

    def evaluate(self, _request: int, weights: str) -> Any:
        return to_json(checked_evaluation(self._task.evaluate(WeightsFile(Path(weights)).weights())), Evaluation)

    def export(self, _request: int, weights: str, changes: str | None, folder: str, stem: str) -> list[str]:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if may_pass(error):
                raise
            raise TaskError(f"{folder} cannot be made a folder to write to: {error.strerror}") from error
        changed = WeightsFile(Path(changes)).weights() if changes is not None else {}
        whole = WeightsFile(Path(weights)).weights() | changed  # in the order of the first
        if whole.keys() != {spec.name for spec in self._schema}:
            raise TaskError("the model is not this task's: its tensors have other names")
        return checked_files(self._task.export(whole, Path(folder), stem))

    def read_model(self, request: int, path: str, out: str) -> None:
        self._write_whole(request, Path(out), self._task.read_model(Path(path)))

    def render_report(self, _request: int, record: dict[str, Any], folder: str, pictures: bool) -> None:
        from fedtask import report  # few requests need it

        report.render(report.record_from_json(record), Path(folder), pictures=pictures)

    def _write_whole(self, request: int, out: Path, weights: Weights) -> None:
        self._write_when_it_can(request, out, manifest_of(self._schema, weights), weights, "the model")


def _crash_words(error: Exception) -> list[str]:
    """The error's type and the first line of its text, then where it was raised, the innermost place first.

    Not all of its text: that of a failed computation can be a wall of numbers.
    """
    first, *_ = str(error).splitlines() or [""]
    places = traceback.extract_tb(error.__traceback__)[: -_SHOWN_PLACES - 1 : -1]
    return [f"{type(error).__name__}: {first}", *(f"{at.filename}:{at.lineno} in {at.name}" for at in places)]


def main() -> None:
    """Serve requests until standard input ends, which it does when the parent process ends, however it ends."""
    incoming, answers = _private_pipes()
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:  # guards the stream: a line is written whole
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    start = json.loads(incoming.readline() or "{}")
    try:
        worker = Worker(create_task(start["task"], start["settings"]), send)
    except (TaskError, ValueError) as error:
        send({"id": 0, "error": str(error)})
        return
    except Exception as error:
        send({"id": 0, "crash": _crash_words(error)})
        raise
    send({"id": 0, "result": None})
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(worker, incoming, requests), daemon=True).start()
    while True:
        request = requests.get()
        worker.answer(request["id"], request["method"], request["params"])


def _read_requests(worker: Worker, incoming: TextIO, requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in incoming:
        message = json.loads(line)
        if "cancel" in message:
            worker.cancel(message["cancel"])
        else:
            requests.put(message)
    # The parent is gone: whatever runs, also what the task has started, has nobody to answer to.
    with contextlib.suppress(ProcessLookupError):  # where a person has started this in a group of processes of theirs
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _private_pipes() -> tuple[TextIO, TextIO]:
    """What were standard input and output, under numbers of their own.

    Also the reader of requests is not `sys.stdin`: a process that `multiprocessing` forks closes that one first, and
    would wait for ever for the lock that the thread which reads has held since before the fork.
    """
    incoming, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return incoming, answers


if __name__ == "__main__":
    main()
