"""Finished local fine-tunes, kept until the server has them: what was trained once is never trained again.

An update is two files: the changed tensors (`.safetensors`, written durably by the worker) and, after it, a sidecar of
facts (`.json`). Only with a sidecar does an update count, and only if every byte of both matches its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import structlog

from fedclient.sealed import seal, unseal
from fedstream.files import FileSystem, is_away, write_durably
from fedstream.manifest import Digest, Manifest
from fedstream.weights_file import FileSpan, WeightsFile, WeightsFileError
from fedtask.messages import LocalUpdate, from_json, to_json

log = structlog.get_logger()

_DAMAGE = (OSError, ValueError, KeyError, TypeError, WeightsFileError)
"""What reading an update raises if any part of it is not what was written."""


@dataclass(frozen=True, slots=True)
class FinishedUpdate:
    """A local fine-tune that is on disk. `base` is the digest of the model it started from."""

    offer_id: str
    round: int
    base: Digest
    path: Path
    update: LocalUpdate

    def manifest(self, base: Manifest) -> Manifest:
        """The manifest of the trained model: the base's, with the entries of changed tensors replaced."""
        changed = {record.name: record.entry() for record in self.update.changed}
        return Manifest(tuple(changed.get(entry.name, entry) for entry in base))

    @property
    def fingerprint(self) -> str:
        """By which it is known again, whatever round it is said to be of: what it started from and what changed."""
        text = "\n".join([self.base.hex, *(f"{record.name} {record.sha256_hex}" for record in self.update.changed)])
        return hashlib.sha256(text.encode()).hexdigest()

    def spans(self) -> dict[str, FileSpan]:
        """Where the values of the changed tensors stand."""
        weights_file = WeightsFile(self.path)
        return {name: weights_file.span(name) for name in weights_file.names}


class UpdateStore:
    """The updates in one folder. All methods block.

    Args:
        folder: its own.
        files: the file system.
    """

    def __init__(self, folder: Path, files: FileSystem) -> None:
        self._folder = folder
        self._files = files
        folder.mkdir(parents=True, exist_ok=True)

    def weights_path(self, offer_id: str) -> Path:
        """Where the changed tensors of an offer's update are to be written."""
        return self.path(offer_id, "safetensors")

    def path(self, offer_id: str, suffix: str) -> Path:
        """A further file of an offer's update, which goes when the update goes."""
        return self._folder / f"{_stem(offer_id)}.{suffix}"

    def paths(self, suffix: str) -> list[Path]:
        """The further files of all updates that end so."""
        return sorted(self._folder.glob(f"*.{suffix}"))

    def _sidecar_path(self, offer_id: str) -> Path:
        return self.path(offer_id, "json")

    def record(self, offer_id: str, round_number: int, base: Digest, update: LocalUpdate) -> FinishedUpdate:
        """Make the update count, durably; its weights are on disk already."""
        facts = {"offer_id": offer_id, "round": round_number, "base": [base.hex, base.size_bytes]}
        sidecar = facts | {"update": to_json(update)}
        write_durably(self._files, self._sidecar_path(offer_id), [seal(sidecar)])
        return FinishedUpdate(offer_id, round_number, base, self.weights_path(offer_id), update)

    def load(self, offer_id: str) -> FinishedUpdate | None:
        """The finished update for an offer, every byte of it checked; `None` if there is none or it is damaged.

        Raises:
            OSError: a disk of the network is away, so that nobody knows.
        """
        sidecar = self._sidecar_path(offer_id)
        try:
            if not sidecar.exists():
                return None
            finished = self._read(sidecar)
        except _DAMAGE as error:
            if is_away(error):
                raise
            log.warning("the update kept on disk is damaged and will be trained again", damage=str(error))
            self.discard(offer_id)
            return None
        return finished

    def latest(self) -> FinishedUpdate | None:
        """The finished update of the highest round; those that are damaged do not count."""
        found: list[FinishedUpdate] = []
        for path in self._folder.glob("*.json"):
            if "." not in path.stem:  # else it says how an update was packed
                with contextlib.suppress(*_DAMAGE):
                    found.append(self._read(path))
        return max(found, key=lambda one: one.round, default=None)

    def _read(self, sidecar: Path) -> FinishedUpdate:
        facts = unseal(sidecar.read_bytes())
        offer_id = facts["offer_id"]
        base = Digest(bytes.fromhex(facts["base"][0]), facts["base"][1])
        update = from_json(LocalUpdate, facts["update"])
        path = self.weights_path(offer_id)
        if WeightsFile(path).manifest().entries != tuple(record.entry() for record in update.changed):
            raise ValueError("its tensors do not match their digests")
        return FinishedUpdate(offer_id, facts["round"], base, path, update)

    def discard(self, offer_id: str) -> None:
        """Forget an offer's update: first that it counts, then its bytes. Idempotent."""
        self._files.remove(self._sidecar_path(offer_id))
        for path in sorted(self._folder.glob(f"{_stem(offer_id)}.*")):
            self._files.remove(path)

    def keep_only(self, offer_ids: Collection[str]) -> None:
        """Forget all updates but those of these offers, and what interrupted writes have left.

        A folder that somebody has cleared away is made again, since the next update is to go there.
        """
        self._folder.mkdir(exist_ok=True)
        kept = {_stem(offer_id) for offer_id in offer_ids}
        for path in self._folder.iterdir():
            if path.name.partition(".")[0] not in kept:
                self._files.remove(path)


def _stem(offer_id: str) -> str:
    # No path is built from text that the other side chose.
    return hashlib.sha256(offer_id.encode()).hexdigest()[:32]
