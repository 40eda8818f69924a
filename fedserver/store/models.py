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
        sha256 = stored.digest.sha256
        with self._database.transaction() as cursor:
            cursor.execute("INSERT OR IGNORE INTO models VALUES (?, ?)", (sha256, manifest.canonical_bytes()))
            cursor.execute("INSERT OR REPLACE INTO versions VALUES (?, ?)", (version, sha256))
        return stored

    def get(self, sha256: bytes) -> StoredModel:
        """The model of that digest, as the latest version that has it.

        Raises:
            UnknownModel: none was published.
        """
        found = self._find("sha256 = ?", sha256)
        if found is None:
            raise UnknownModel("no published model has that digest; use the base model of the current offer")
        return found

    def latest(self) -> StoredModel | None:
        """The model of the highest version, if there is any."""
        return self._find("true")

    def of_version(self, version: int) -> StoredModel:
        """The model that round `version` made; 0 for the initial one.

        Raises:
            UnknownModel: that round made none.
        """
        found = self._find("version = ?", version)
        if found is None:
            raise UnknownModel(f"no global model came out of round {version}")
        return found

    def _find(self, condition: str, *values: object) -> StoredModel | None:
        sql = "SELECT version, manifest FROM versions JOIN models USING (sha256) WHERE "
        rows = self._database.query(f"{sql}{condition} ORDER BY version DESC LIMIT 1", *values)
        return self._stored(rows[0][0], parse_canonical(rows[0][1])) if rows else None

    def _stored(self, version: int, manifest: Manifest) -> StoredModel:
        digest = manifest.model_digest()
        return StoredModel(version, digest, manifest, self._folder / f"{digest.hex}.safetensors")
