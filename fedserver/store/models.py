"""Published models: one safetensors file each, named by the model's digest, and its manifest in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedserver.store.database import Database
from fedstream.body import BodyReader
from fedstream.errors import UnknownModel
from fedstream.files import FileSystem, write_durably
from fedstream.manifest import Digest, Manifest, entry_of, parse_canonical
from fedstream.schema import ModelSchema
from fedstream.weights_file import WeightsFile, file_parts


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A published model on disk."""

    version: int
    digest: Digest
    manifest: Manifest
    path: Path

    def weights(self) -> dict[str, np.ndarray]:
        """Its tensors, as read-only views of the mapped file."""
        return WeightsFile(self.path).weights()

    def body(self, indexes: Iterable[int]) -> BodyReader:
        """A reader of the body that holds the tensors at `indexes`; to be closed."""
        file = WeightsFile(self.path)
        return BodyReader([file.span(self.manifest.entries[index].name) for index in indexes])


class ModelStore:
    """Keeps published models.

    Args:
        folder: where the files are; made if need be.
        database: where the facts are.
        files: the file system.
    """

    def __init__(self, folder: Path, database: Database, files: FileSystem) -> None:
        folder.mkdir(exist_ok=True, mode=0o700)
        self._folder, self._database, self._files = folder, database, files

    def add(self, version: int, schema: ModelSchema, weights: Mapping[str, np.ndarray]) -> StoredModel:
        """Store a model durably; storing the same one again is safe. One tensor is held in memory at a time.

        Args:
            version: number of the round that made it.
            schema: its tensors, in order.
            weights: their values.
        """
        manifest = Manifest(tuple(entry_of(spec, weights[spec.name]) for spec in schema))
        stored = self._stored(version, manifest)
        if not stored.path.exists():
            write_durably(self._files, stored.path, file_parts(manifest, weights))
        sql = "INSERT INTO models VALUES (?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET version = excluded.version"
        self._database.execute(sql, stored.digest.sha256, version, manifest.canonical_bytes())
        return stored

    def get(self, sha256: bytes) -> StoredModel:
        """The model of that digest.

        Raises:
            UnknownModel: none was published.
        """
        rows = self._database.query("SELECT version, manifest FROM models WHERE sha256 = ?", sha256)
        if not rows:
            raise UnknownModel("no published model has that digest; use the base model of the current offer")
        version, text = rows[0]
        return self._stored(version, parse_canonical(text))

    def latest(self) -> StoredModel | None:
        """The model of the highest version, if there is any."""
        rows = self._database.query("SELECT version, manifest FROM models ORDER BY version DESC LIMIT 1")
        return self._stored(rows[0][0], parse_canonical(rows[0][1])) if rows else None

    def of_version(self, version: int) -> StoredModel:
        """The model that round `version` made; 0 for the initial one.

        Raises:
            UnknownModel: that round made none.
        """
        rows = self._database.query("SELECT manifest FROM models WHERE version = ?", version)
        if not rows:
            raise UnknownModel(f"no global model came out of round {version}")
        return self._stored(version, parse_canonical(rows[0][0]))

    def _stored(self, version: int, manifest: Manifest) -> StoredModel:
        digest = manifest.model_digest()
        return StoredModel(version, digest, manifest, self._folder / f"{digest.hex}.safetensors")
