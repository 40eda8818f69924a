"""Models that a client has on disk: whole, verified, named by digest, and a source of tensors for the next one.

They are not synced: every byte is hashed when a client starts, whatever was synced, and each can be downloaded again.
That ends with the federation: what is here when its server leaves is synced before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import structlog

from fedstream.errors import FedstreamError
from fedstream.files import TEMPORARY_SUFFIX, FileSystem, make_durable
from fedstream.manifest import Digest, Manifest
from fedstream.weights_file import FileSpan, WeightsFile, WeightsFileError

log = structlog.get_logger()

_SUFFIX = ".safetensors"


class DamagedTensor(FedstreamError):
    """Bytes that were put together to a tensor do not have the digest that its manifest says."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on disk whose bytes were verified."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> Digest:
        """Its name."""
        return self.manifest.model_digest()

    def spans(self) -> dict[str, FileSpan]:
        """Where each tensor's values stand."""
        weights_file = WeightsFile(self.path)
        return {name: weights_file.span(name) for name in weights_file.names}


class ModelStore:
    """The models in one folder. `load` blocks for as long as hashing all of them takes, the others for moments.

    Args:
        folder: its own; other files in it are left alone.
        files: the file system.
    """

    def __init__(self, folder: Path, files: FileSystem) -> None:
        self._folder = folder
        self._files = files
        self._models: dict[bytes, LocalModel] = {}

    def load(self) -> None:
        """Read what is there, hashing every byte; a model that is not what its name says is removed.

        After a power cut that may be any of them, with the name of a whole one and the content of none.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        found = [self._read(path) for path in sorted(self._folder.glob(f"*{_SUFFIX}"))]
        self._models = {model.digest.sha256: model for model in found if model is not None}

    def _read(self, path: Path) -> LocalModel | None:
        try:
            model = LocalModel(path, WeightsFile(path).manifest())
            if path.stem == model.digest.hex:
                return model
            damage = "its bytes do not match its name"
        except (WeightsFileError, OSError, ValueError) as error:
            damage = str(error)
        log.warning("a model kept from an earlier round is damaged and will be downloaded again", damage=damage)
        self._files.remove(path)
        return None

    def get(self, digest: Digest) -> LocalModel | None:
        """The model of that digest, if it is here."""
        self._forget_gone()
        return self._models.get(digest.sha256)

    def tensors(self) -> dict[Digest, FileSpan]:
        """Every tensor of every model here, by digest."""
        self._forget_gone()
        found: dict[Digest, FileSpan] = {}
        for model in list(self._models.values()):
            spans = model.spans()
            found |= {entry.digest: spans[entry.name] for entry in model.manifest}
        return found

    def _forget_gone(self) -> None:
        """Count no model whose file somebody has removed: it can be downloaded again, where else each round would fail.

        Where the state folder is gone too, its disk may only be away, with all that is on it.
        """
        if not self._folder.parent.is_dir():
            return
        for sha256, model in list(self._models.items()):
            if not model.path.exists():
                log.warning("a model was removed and will be downloaded again if it is needed", file=str(model.path))
                self._models.pop(sha256, None)

    def partial_path(self, digest: Digest) -> Path:
        """Where the model of that digest is to be put together."""
        return self._folder / f"{digest.hex}{_SUFFIX}{TEMPORARY_SUFFIX}"

    def adopt(self, manifest: Manifest) -> LocalModel:
        """Count the file at `partial_path` among the models. The caller has written all of it and checked every tensor.

        It takes effect at once, but a power cut may undo it in whole or part, which `load` finds: a sync of each would
        make every round wait for the disk, to spare a download after a power cut.
        """
        digest = manifest.model_digest()
        path = self._folder / f"{digest.hex}{_SUFFIX}"
        self._files.rename(self.partial_path(digest), path)
        model = self._models[digest.sha256] = LocalModel(path, manifest)
        return model

    def make_durable(self) -> None:
        """Sync all models: from here on a power cut cannot undo them. Blocks for as long as the disk takes.

        Raises:
            OSError: the disk refuses.
        """
        for model in list(self._models.values()):
            make_durable(self._files, model.path)

    def drop_partials(self, but: Digest | None = None) -> None:
        """Remove what has arrived of models that are not whole, or of all but one. None of them may be at work."""
        kept = self.partial_path(but) if but is not None else None
        for path in self._folder.glob(f"*{_SUFFIX}{TEMPORARY_SUFFIX}"):
            if path != kept:
                self._files.remove(path)

    def keep_only(self, digests: Collection[Digest]) -> None:
        """Remove all other models."""
        kept = {digest.sha256 for digest in digests}
        for model in [self._models.pop(sha256) for sha256 in self._models.keys() - kept]:
            self._files.remove(model.path)
