"""The client under test: its command, started anew for each scene, and whatever it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

_KILL_SECONDS = 5.0


class CommandError(Exception):
    """The command cannot be started; the message says why."""


GIVEN = ("server", "name", "data", "state", "out", "token", "identity")
"""What may stand in braces: a site's server, name and data, a folder to keep things in, one for results, and where a
scene has them a token to join with and a folder for what joining leaves."""


def require_command(words: Sequence[str]) -> None:
    """Look, before anything is played, whether this can be started.

    Raises:
        CommandError: there is no such program, or something stands in braces that is not given.
    """
    program = filled(words, dict.fromkeys(GIVEN, "x"))[0]
    if shutil.which(program) is None:
        raise CommandError(f"{program} cannot be started: there is no such program here")


def filled(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The command with `{name}` and the like replaced.

    Raises:
        CommandError: a placeholder has no value.
    """
    try:
        return [word.format_map(dict(values)) for word in words]
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise CommandError(f"the command may hold {known}, and braces for nothing else: {error}") from error


class Subject:
    """One client's process, in a group of its own, so that what it starts ends with it."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self._words = list(words)
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; what it says is added to the log.

        Raises:
            CommandError: there is no such program.
        """
        with self._log.open("ab") as log:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._words, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            except OSError as error:
                raise CommandError(f"{self._words[0]} cannot be started: {error.strerror or error}") from error

    @property
    def exit_status(self) -> int | None:
        """How it ended; `None` while it runs."""
        return self._process.returncode if self._process is not None else None

    async def ends(self, within_seconds: float) -> int | None:
        """How it ended by itself; `None` if it has not in time."""
        if self._process is None:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._process.wait()
        return self.exit_status

    async def kill(self) -> None:
        """End it at once, without a chance to tidy up."""
        await self._signal(signal.SIGKILL)

    async def stop(self) -> None:
        """End it and whatever it has started."""
        if self._process is not None and self._process.returncode is None:
            await self._signal(signal.SIGTERM)
        await self.kill()

    async def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_SECONDS):
                await process.wait()

    def last_words(self) -> str:
        """The last three lines that it said."""
        if not self._log.is_file():
            return ""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:])[:600]
