"""In which phase a server or a client is, as its own log lines say: those of `--log-json --log-level debug`."""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass, field
from typing import Any, Protocol


class Phase(enum.Enum):
    """Where a server can be killed. `collect` is divided by the furthest thing that any client is at."""

    RECOVER = "recover"
    """From the start of the process until it takes part again: what an earlier process left is read."""
    SELECT = "select"
    OFFER = "offer"
    NEGOTIATE = "collect: negotiating"
    DOWNLOAD = "collect: downloading"
    TRAIN = "collect: training"
    UPLOAD = "collect: uploading"
    FINISH = "collect: finishing"
    """An upload is verified, stored, folded and recorded, or the round is being closed."""
    AGGREGATE = "aggregate"
    PUBLISH = "publish"
    EVALUATE = "evaluate"
    CONCLUDE = "conclude"
    REPORT = "report"
    FAREWELL = "farewell"


class ClientPhase(enum.Enum):
    """Where a client can be killed."""

    JOIN = "joining"
    """From the start of the process until the server's welcome."""
    WAIT = "waiting"
    NEGOTIATE = "negotiating"
    DOWNLOAD = "downloading"
    TRAIN = "training"
    KEEP = "keeping what was trained"
    UPLOAD = "uploading"


class Tracker(Protocol):
    """Follows a log, line by line."""

    @property
    def phase(self) -> Phase | ClientPhase:
        """The phase now."""

    @property
    def round(self) -> int:
        """The number of the round at work, 0 before the first."""

    def feed(self, line: bytes) -> None:
        """Take in one line; lines that are no events are passed over."""


def read_event(line: bytes) -> dict[str, Any]:
    """The event that a line of a log is; empty if it is none, such as the join command."""
    try:
        event: Any = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


_NAMED = {phase.value: phase for phase in Phase}
_OUTSTANDING = re.compile(r"waiting for (.*)$")


@dataclass(slots=True)
class PhaseTracker:
    """Follows a server's log, line by line. `round` is the number of the round at work, 0 before the first."""

    round: int = 0
    _phase: Phase | None = Phase.RECOVER
    _outstanding: set[str] = field(default_factory=set)
    _accepted: set[str] = field(default_factory=set)
    _uploading: set[str] = field(default_factory=set)
    _finishing: set[str] = field(default_factory=set)
    _downloads: int = 0

    @property
    def phase(self) -> Phase:
        """The phase now."""
        return self._phase or self._in_collect()

    def _in_collect(self) -> Phase:
        if self._finishing or not self._outstanding:
            return Phase.FINISH
        if self._uploading:
            return Phase.UPLOAD
        if not self._outstanding <= self._accepted:
            return Phase.NEGOTIATE
        return Phase.DOWNLOAD if self._downloads else Phase.TRAIN

    def feed(self, line: bytes) -> None:
        """Take in one line; lines that are no events are passed over."""
        event = read_event(line)
        self._take(event.get("event", ""), event)

    def _take(self, name: str, event: dict[str, Any]) -> None:
        client = event.get("client", "")
        match name:
            case "phase":
                self._enter(event["name"], event)
            case "finishing":
                self._phase = Phase.REPORT
            case "running":
                self._read_reason(event["reason"])
            case "heard" if event.get("kind") == "accept":
                self._accepted.add(client)
            case "upload begins":
                self._uploading.add(client)
            case "upload is checked":
                self._uploading.discard(client)
                self._finishing.add(client)
            case "upload is settled":
                self._finishing.discard(client)
                self._outstanding.discard(client)
            case "download begins":
                self._downloads += 1
            case "download ends":
                self._downloads -= 1

    def _enter(self, name: str, event: dict[str, Any]) -> None:
        self.round = event.get("round", self.round)
        self._phase = _NAMED.get(name)  # `collect` is none: it is divided
        if self._phase is None:
            self._outstanding, self._accepted = {"someone"}, set()
            self._uploading, self._finishing = set(), set()

    def _read_reason(self, reason: str) -> None:
        found = _OUTSTANDING.search(reason)
        if found is not None:
            self._outstanding = set(found[1].split(", ")) - {""}


_CLIENT_PHASES = {
    "welcome": ClientPhase.WAIT,
    "offer accepted": ClientPhase.NEGOTIATE,
    "downloading": ClientPhase.DOWNLOAD,
    "training": ClientPhase.TRAIN,
    "trained": ClientPhase.KEEP,
    "this round is trained already; sending what was kept": ClientPhase.KEEP,
    "sending the update": ClientPhase.UPLOAD,
    "resuming the upload": ClientPhase.UPLOAD,
    "update delivered": ClientPhase.WAIT,
}


@dataclass(slots=True)
class ClientTracker:
    """Follows a client's log."""

    round: int = 0
    phase: ClientPhase = ClientPhase.JOIN

    def feed(self, line: bytes) -> None:
        """Take in one line; lines that are no events are passed over."""
        event = read_event(line)
        self.round = event.get("round", self.round)
        self.phase = _CLIENT_PHASES.get(event.get("event", ""), self.phase)
