"""That a federation is over, as a site's state folder knows it.

A server that has told it to all clients leaves. A client that is killed then, and started again, would wait for it for
ever, with the final models on its disk: from this note it knows that there is nothing to wait for.

The note is written as soon as the end is heard, and again when the final models are saved for people. Then it stays: a
client may also be killed in its very last moment. The server has the last word all the same: where it can be reached
and does not say that the federation is over, the note is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from fedclient.events import FederationOutcome, TaskOnOffer
from fedclient.sealed import seal, unseal
from fedstream.files import FileSystem, write_durably
from fedstream.manifest import Digest, ModelRef

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known of it: `server` said so, and `saved` has the files of the final models once they are written."""

    server: str
    task: TaskOnOffer
    outcome: FederationOutcome
    saved: tuple[Path, ...] | None = None

    @property
    def is_saved(self) -> bool:
        """Whether the final models are where people find them. An output folder may have been emptied since."""
        return self.saved is not None and all(path.exists() for path in self.saved)

    def has_models_of(self, outcome: FederationOutcome) -> bool:
        """Whether another outcome names the same final models."""
        return (self.outcome.best, self.outcome.last) == (outcome.best, outcome.last)


class EndingNote:
    """The note, in one small file. All methods block, for as long as such a file takes.

    It matters only to a client that is killed.

    Args:
        path: of the file.
        files: the file system.
    """

    def __init__(self, path: Path, files: FileSystem) -> None:
        self._path = path
        self._files = files
        self.ending: Ending | None = None

    def load(self) -> None:
        """Read what an earlier process has noted."""
        try:
            self.ending = _read(unseal(self._path.read_bytes()))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the note that the federation is over cannot be read and is ignored", damage=str(error))

    def write(self, ending: Ending) -> None:
        """Note it, durably.

        Raises:
            OSError: the disk refuses. This process knows it all the same.
        """
        self.ending = ending
        write_durably(self._files, self._path, [seal(_facts(ending))])

    def forget(self) -> None:
        """The federation goes on, or it is another one."""
        if self.ending is None:
            return
        self.ending = None
        try:
            self._files.remove(self._path)
            self._files.sync_folder(self._path.parent)
        except OSError as error:
            log.warning("the note of an earlier end could not be removed", because=str(error))


def _facts(ending: Ending) -> Mapping[str, Any]:
    task, outcome = ending.task, ending.outcome
    return {
        "server": ending.server,
        "task": [task.federation_name, task.task_name, dict(task.settings)],
        "reason": outcome.reason,
        "last": _ref_facts(outcome.last),
        "best": _ref_facts(outcome.best),
        "metrics": dict(outcome.metrics),
        "saved": None if ending.saved is None else [str(path) for path in ending.saved],
    }


def _ref_facts(model: ModelRef) -> list[Any]:
    return [model.version, model.digest.hex, model.digest.size_bytes]


def _read(held: Mapping[str, Any]) -> Ending:
    federation, task, settings = held["task"]
    outcome = FederationOutcome(held["reason"], _read_ref(held["last"]), _read_ref(held["best"]), held["metrics"])
    saved = None if held["saved"] is None else tuple(map(Path, held["saved"]))
    return Ending(held["server"], TaskOnOffer(federation, task, settings), outcome, saved)


def _read_ref(facts: list[Any]) -> ModelRef:
    version, sha256, size_bytes = facts
    return ModelRef(version, Digest(bytes.fromhex(sha256), size_bytes))
