"""Models that a client has on disk: whole, verified, named by digest, and a source of tensors for the next one."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from fedstream.body import BodyReader
from fedstream.errors import FedstreamError
from fedstream.files import FileSystem, write_durably
from fedstream.manifest import Digest, Manifest
from fedstream.weights_file import FileSpan, WeightsFile, WeightsFileError, header_of

log = structlog.get_logger()

_SUFFIX = ".safetensors"
_PIECE_BYTES = 4 << 20


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
    """The models in one folder. All methods block; they take about as long as hashing and writing the model.

    Args:
        folder: its own; other files in it are left alone.
        files: the file system.
    """

    def __init__(self, folder: Path, files: FileSystem) -> None:
        self._folder = folder
        self._files = files
        self._models: dict[bytes, LocalModel] = {}

    def load(self) -> None:
        """Read what is there, hashing every byte; a model that is not what its name says is removed."""
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
        return self._models.get(digest.sha256)

    def tensors(self) -> dict[Digest, FileSpan]:
        """Every tensor of every model here, by digest."""
        found: dict[Digest, FileSpan] = {}
        for model in self._models.values():
            spans = model.spans()
            found |= {entry.digest: spans[entry.name] for entry in model.manifest}
        return found

    def add(self, manifest: Manifest, spans: Sequence[FileSpan]) -> LocalModel:
        """Put a model together from pieces of files, one per tensor in manifest order, durably.

        Raises:
            DamagedTensor: a piece does not have its tensor's digest; nothing was added.
        """
        digest = manifest.model_digest()
        path = self._folder / f"{digest.hex}{_SUFFIX}"
        write_durably(self._files, path, verified_parts(manifest, spans))
        model = self._models[digest.sha256] = LocalModel(path, manifest)
        return model

    def keep_only(self, digests: Collection[Digest]) -> None:
        """Remove all other models."""
        kept = {digest.sha256 for digest in digests}
        for sha256 in self._models.keys() - kept:
            self._files.remove(self._models.pop(sha256).path)


def verified_parts(manifest: Manifest, spans: Sequence[FileSpan]) -> Iterator[bytes]:
    """A weights file as pieces of a few MiB, each tensor checked as its last piece goes by.

    Raises:
        DamagedTensor: a piece does not have its tensor's digest.
    """
    yield header_of(manifest)
    with BodyReader(spans) as body:
        start = 0
        for entry in manifest:
            end = start + entry.size_bytes
            hasher = hashlib.sha256()
            for piece in _pieces(body, start, end):
                hasher.update(piece)
                yield piece
            if hasher.digest() != entry.digest.sha256:
                raise DamagedTensor(f"tensor {entry.name} does not match its digest")
            start = end


def _pieces(body: BodyReader, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        piece = body.read(start, min(_PIECE_BYTES, end - start))
        if not piece:  # the file is shorter than it was; the digest will say so
            return
        yield piece
        start += len(piece)
