"""What a site remembers from round to round, and over a restart: its training history and how long things took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import structlog

from fedclient.reply import Experience
from fedclient.sealed import seal, unseal
from fedstream.files import FileSystem, write_durably

log = structlog.get_logger()

Row = Mapping[str, Any]
"""One epoch: `round`, `epoch`, and the metrics of the fine-tune by name."""


class SiteMemory:
    """One federation's memory, in one small file. Damage to it costs the plots of earlier rounds and the count of
    updates.

    Which updates left is remembered whatever the federation: a server chooses its name, as it does the rounds' numbers,
    and must not set back by it what the site allows.

    What is taken note of is on disk after the next `save`, which may be called from a thread: each save waits for the
    disk twice, so a round saves once, before its update leaves.

    Args:
        path: of the file.
        federation: its name; the history that is remembered of another one is dropped.
        files: the file system.
    """

    def __init__(self, path: Path, federation: str, files: FileSystem) -> None:
        self._path = path
        self._federation = federation
        self._files = files
        self._rows: list[Row] = []
        self._experience = Experience()
        self._sent: frozenset[str] = frozenset()
        self._is_saved = True
        self._saving = Lock()
        self._load()

    @property
    def rows(self) -> Sequence[Row]:
        """Every epoch of every round so far, in order."""
        return self._rows

    @property
    def experience(self) -> Experience:
        """What rounds took here, and how many updates left."""
        return replace(self._experience, rounds_sent=len(self._sent))

    def has_sent(self, fingerprint: str) -> bool:
        """Whether this update left already, or began to: once more it tells nothing new."""
        return fingerprint in self._sent

    def learn(self, experience: Experience) -> None:
        """Remember what a round took."""
        self._experience, self._is_saved = experience, False

    def note_sent(self, fingerprint: str) -> None:
        """Count an update. Save before its first byte leaves: a crash must not make room for one more."""
        if fingerprint not in self._sent:
            self._sent, self._is_saved = self._sent | {fingerprint}, False

    def add_history(self, round_number: int, history: Sequence[Mapping[str, Any]]) -> None:
        """Add a round's epochs. A round that is done again replaces what was there from it on."""
        kept = [row for row in self._rows if row["round"] < round_number]
        new: list[Row] = [{"round": round_number, "epoch": epoch, **row} for epoch, row in enumerate(history, start=1)]
        self._rows, self._is_saved = kept + new, False

    def _load(self) -> None:
        try:
            held = unseal(self._path.read_bytes())
            self._sent = frozenset(map(str, held.get("sent", ())))  # of earlier versions: numbers of rounds, or none
            if held["federation"] == self._federation:
                self._rows = list(held["rows"])
                self._experience = Experience(held["epoch_seconds"], held["transfer_seconds"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the history of earlier rounds cannot be read and starts anew", damage=str(error))

    def save(self) -> None:
        """Make durable what was taken note of since the last time, if anything was. Blocks.

        Raises:
            OSError: the disk refuses; what is there stays as it was.
        """
        with self._saving:
            if self._is_saved:
                return
            self._is_saved = True  # what is noted from here on may not be in it
            held = {
                "federation": self._federation,
                "epoch_seconds": self._experience.epoch_seconds,
                "transfer_seconds": self._experience.transfer_seconds,
                "rows": self._rows,
                "sent": sorted(self._sent),
            }
            try:
                write_durably(self._files, self._path, [seal(held)])
            except OSError:
                self._is_saved = False
                raise
