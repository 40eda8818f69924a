"""What the commands do, once their options are read: a client's process, with its signals, and predictions."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import stamina.instrumentation
import structlog

from fedclient.client import Client
from fedclient.config import ClientConfig
from fedclient.display import Display, LogDisplay, TerminalDisplay
from fedclient.exit_codes import ExitCode, Stop
from fedclient.identity import IdentityFolder, default_identity_folder
from fedclient.join import join, places, read_token
from fedstream.heap import keep_few_heaps, keep_freed_memory
from fedstream.logs import configure_logs, go_on_without_output
from fedstream.signals import end_at_once_from_now_on, is_heeded
from fedtask.task import TaskError

log = structlog.get_logger()

_SIGNALS = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGHUP: ExitCode.HUNG_UP,
}


def run_client(config: ClientConfig, log_json: bool | None, log_level: str) -> str:
    """Take part in a federation in this process; returns how it ended.

    Raises:
        Stop: it did not end well.
    """
    # Every wait before a new try is logged where it is decided, with the reason in plain words.
    stamina.instrumentation.set_on_retry_hooks([])
    go_on_without_output()
    keep_few_heaps()
    keep_freed_memory()
    with _display(log_json) as display:
        configure_logs(log_json, log_level, sys.stderr)
        structlog.contextvars.bind_contextvars(client=config.name)
        log.info("settings", **config.shown())
        return asyncio.run(_run(Client(config, display)))


def join_federation(
    server: str | None, token: str | None, token_file: Path | None, enrolment: str | None, identity: Path | None
) -> str:
    """Join with a token from the command line, standard input or a file; returns what to do next.

    Raises:
        Stop: it did not end well.
    """
    stamina.instrumentation.set_on_retry_hooks([])
    configure_logs(None, "warning", sys.stderr)
    read = read_token(_token_text(token, token_file))
    chosen = identity or default_identity_folder()
    joined = asyncio.run(join(read, *places(read, server, enrolment), IdentityFolder(chosen)))
    option = f" --identity {shlex.quote(str(identity))}" if identity is not None else ""
    return f"{joined}.\nIts key is in {chosen}. Take part with: fedclient run{option} --data DIR"


_STANDARD_INPUT = "-"


def _token_text(token: str | None, token_file: Path | None) -> str:
    if (token is None) == (token_file is None):
        raise Stop(ExitCode.BAD_CONFIGURATION, "give the token with --token or with --token-file")
    try:
        if token_file is not None:
            return token_file.read_text(encoding="utf-8")
        return token if token not in (None, _STANDARD_INPUT) else sys.stdin.read()
    except (OSError, ValueError) as error:
        raise Stop(ExitCode.BAD_CONFIGURATION, f"the token cannot be read: {error}") from error


@contextlib.contextmanager
def _display(log_json: bool | None) -> Iterator[Display]:
    in_terminal = sys.stderr.isatty() and not log_json
    display: Display = TerminalDisplay() if in_terminal else LogDisplay()
    try:
        yield display
    finally:
        display.close()


async def _run(client: Client) -> str:
    """Run the client until it ends or a signal comes; after a signal it says good-bye first."""
    asked = asyncio.get_running_loop().create_future()
    for number in _SIGNALS:
        if number is not signal.SIGHUP or is_heeded(number):  # `nohup` has it ignored
            asyncio.get_running_loop().add_signal_handler(number, _ask_to_stop, asked, number)
    work = asyncio.create_task(client.run())
    await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        return work.result()
    log.info("leaving; Ctrl-C or SIGTERM to end at once", signal=asked.result().name)
    await client.leave("stopped by its operator")
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    code = _SIGNALS[asked.result()]
    raise Stop(code, f"{code.meaning}; start it again to take part again")


def _ask_to_stop(asked: asyncio.Future[signal.Signals], number: signal.Signals) -> None:
    if not asked.done():
        asked.set_result(number)
        # What was finished is on disk already. A second hang-up is heard still: of a terminal that is closed, both the
        # shell and the system send one.
        end_at_once_from_now_on()


def predict_images(model: Path, images: Sequence[Path]) -> Iterator[str]:
    """One line per image, in order: the file, its class and how probable that is. Of a folder, every file in it.

    Raises:
        Stop: with `BAD_DATA`, before the first line if the model cannot be read, after the last if an image could not.
    """
    if not model.is_file():  # said at once, and not after the seconds that tensorflow takes
        raise Stop(ExitCode.BAD_DATA, f"there is no model file {model}")
    from fedtask.quiet_start import load_tensorflow_quietly

    try:
        files = _files_of(images)
        load_tensorflow_quietly()
        from fedtask.brain_mri.export import predict

        predictions = predict(model, files)
    except TaskError as error:
        raise Stop(ExitCode.BAD_DATA, str(error)) from error
    for one in predictions:
        if one.probability is None:
            yield f"{one.path}: unusable: {one.problem}"
        else:
            yield f"{one.path}: {one.class_name} {one.probability:.4f}"
    unusable = sum(one.probability is None for one in predictions)
    if unusable:
        raise Stop(ExitCode.BAD_DATA, f"{unusable} of {len(files)} images could not be used")


def _files_of(images: Sequence[Path]) -> list[Path]:
    """The files that are named, and in place of each folder those in it and in its sub-folders.

    Raises:
        TaskError: there is none in a folder, or it cannot be read.
    """
    from fedtask.images.folders import files_below, told_if_unreadable

    files: list[Path] = []
    with told_if_unreadable():
        for path in images:
            found = files_below(path).files if path.is_dir() else (path,)
            if not found:
                raise TaskError(f"there is no file in {path}")
            files += found
    return files
