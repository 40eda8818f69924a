"""How far the work is, for people: a bar in a terminal, now and then a line in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

import structlog

from fedstream.progress import Phase, Progress

log = structlog.get_logger()

_SECONDS_BETWEEN_LINES = 5.0

_BESIDES_TEXT = len(" ━━━━━━━━━━ 0:00:00 ")
"""Of a terminal's line: a bar that still shows how far it is, the time, and what separates the columns."""


class Display(Protocol):
    """Where progress is shown."""

    def show(self, round_number: int, progress: Progress, note: str = "") -> None:
        """Show where the work of a round is; `note` is such as `3.1 of 9.0 MB`."""

    def idle(self, text: str) -> None:
        """Show that nothing is being done, and what is waited for."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class LogDisplay:
    """A line when the phase changes, and otherwise not more than one in a few seconds."""

    def __init__(self) -> None:
        self._phase: tuple[int, Phase] | None = None
        self._last = 0.0
        self._idle = ""

    def show(self, round_number: int, progress: Progress, note: str = "") -> None:
        phase = (round_number, progress.phase)
        now = time.monotonic()
        if phase == self._phase and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._phase, self._last, self._idle = phase, now, ""
        facts: dict[str, object] = {"done": f"{progress.fraction:.0%}"}
        if progress.epoch:
            facts["epoch"] = f"{progress.epoch}/{progress.epochs}"
        facts |= {name: round(value, 4) for name, value in progress.metrics.items() if value is not None}
        if note:
            facts["sent" if progress.phase is Phase.UPLOADING else "received"] = note
        log.info(progress.phase.value, **facts)

    def idle(self, text: str) -> None:
        if text != self._idle:
            self._idle = text
            log.info("waiting", what=text)

    def close(self) -> None:
        pass


class TerminalDisplay:
    """One bar at the foot of the terminal; log lines scroll above it."""

    def __init__(self) -> None:
        from rich.console import Console  # rich takes a tenth of a second to import, and services need none of it
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        # What is shown is partly the server's words: no markup.
        words, note = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[note]}"))
        self._bar = Progress(
            words, BarColumn(), note, TimeElapsedColumn(), console=Console(stderr=True), transient=True
        )
        self._task = self._bar.add_task("connecting", total=None, note="")
        self._bar.start()

    def show(self, round_number: int, progress: Progress, note: str = "") -> None:
        doing = f"epoch {progress.epoch}/{progress.epochs}" if progress.epoch else progress.phase.value
        words = f"round {round_number} · {doing}"
        note = note or self._as_many_as_fit(progress.metrics, self._bar.console.width - _BESIDES_TEXT - len(words))
        self._bar.update(self._task, description=words, total=1.0, completed=progress.fraction, note=note)

    @staticmethod
    def _as_many_as_fit(metrics: Mapping[str, float | None], room: int) -> str:
        """The first metrics, in so many columns: of a line that is too long, rich would cut the words before them."""
        note = ""
        for figure in (f"{name} {value:.4f}" for name, value in metrics.items() if value is not None):
            longer = f"{note}, {figure}" if note else figure
            if len(longer) > room:
                break
            note = longer
        return note

    def idle(self, text: str) -> None:
        self._bar.update(self._task, description=text, total=None, note="")

    def close(self) -> None:
        self._bar.stop()
