"""Published models: one safetensors file each, named by the model's digest, and its manifest in the database."""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedserver.store.blobs import check_file
from fedserver.store.database import Database
from fedserver.store.errors import DamagedFile
from fedstream.body import BodyReader
from fedstream.errors import UnknownModel
from fedstream.files import TEMPORARY_SUFFIX, FileSystem, write_then_name
from fedstream.manifest import Digest, Manifest, TensorEntry, parse_canonical, raw_bytes
from fedstream.schema import ModelSchema
from fedstream.weights_file import WeightsFile, WeightsFileError, header_of

WAY_OUT = "restore a backup (`fedserver restore`); `fedserver verify` says what else is damaged"

_SCRATCH = f"new{TEMPORARY_SUFFIX}"
"""A model on its way in: its name is its digest, which is known when all of it has been written. Swept at start-up."""


_MANIFESTS = 2
"""How many manifests are kept as objects: of the round's base, and of what the round has made."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A published model. `kept` says whether its file is still there, or only its manifest."""

    version: int
    digest: Digest
    manifest: Manifest
    path: Path
    kept: bool = True

    def weights(self) -> Mapping[str, np.ndarray]:
        """Its tensors, read-only, each in memory only while it is held.

        Raises:
            DamagedFile: the file is missing or no longer a weights file.
        """
        return self._file().on_demand()

    def body(self, indexes: Iterable[int]) -> BodyReader:
        """A reader of the body that holds the tensors at `indexes`; to be closed.

        Raises:
            DamagedFile: as `weights`.
        """
        file = self._file()
        return BodyReader([file.span(self.manifest.entries[index].name) for index in indexes])

    def check(self) -> None:
        """Compare every byte of the file with the manifest.

        Raises:
            DamagedFile: names the tensor.
        """
        check_file(self.path, self.manifest.entries, WAY_OUT)

    def _file(self) -> WeightsFile:
        try:
            file = WeightsFile(self.path, self.manifest.entries)
        except (WeightsFileError, OSError) as error:
            raise DamagedFile(self.path, f"cannot be used ({error})", WAY_OUT) from error
        if file.names != [entry.name for entry in self.manifest]:
            raise DamagedFile(self.path, "is damaged: it holds other tensors than its manifest", WAY_OUT)
        return file


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
        # Guards the files against being collected while the same model is being stored again.
        self._lock = threading.Lock()
        # A round's clients ask for one model, each by itself; what its row says is read once, as long as it says that.
        self._read_manifest = functools.lru_cache(_MANIFESTS)(_read_manifest)

    def add(self, version: int, schema: ModelSchema, tensors: Iterable[tuple[TensorEntry, np.ndarray]]) -> StoredModel:
        """Store a model durably; storing the same one again is safe. One tensor is held in memory at a time.

        Args:
            version: number of the round that made it.
            schema: its tensors' names, types and shapes.
            tensors: each tensor's entry with its values, in schema order; asked for when its turn comes.
        """
        entries: list[TensorEntry] = []
        with self._lock:
            write_then_name(
                self._files,
                self._folder / _SCRATCH,
                _parts(schema, tensors, entries),
                lambda: self._path(Manifest(tuple(entries)).model_digest().sha256),
            )
            manifest = Manifest(tuple(entries))
            stored = self._stored(version, manifest, manifest.model_digest(), kept=True)
            sha256 = stored.digest.sha256
            keep = "INSERT INTO models VALUES (?, ?, 1) ON CONFLICT (sha256) DO UPDATE SET kept = 1"
            with self._database.transaction() as cursor:
                cursor.execute(keep, (sha256, stored.manifest.canonical_bytes()))
                cursor.execute("INSERT OR REPLACE INTO versions VALUES (?, ?)", (version, sha256))
        return stored

    def get(self, sha256: bytes) -> StoredModel:
        """The model of that digest, as the latest version that has it.

        Raises:
            UnknownModel: none was published, or it is no longer kept.
        """
        found = self.of_digest(sha256)
        if not found.kept:
            raise _unknown()
        return found

    def of_digest(self, sha256: bytes) -> StoredModel:
        """The model of that digest, as the latest version that has it. It may be no longer kept.

        Raises:
            UnknownModel: none was published.
            InvalidManifest: its manifest is damaged.
        """
        found = self._find("sha256 = ?", sha256)
        if found is None or found.digest.sha256 != sha256:
            raise _unknown()
        return found

    def latest(self) -> StoredModel | None:
        """The model of the highest version, if there is any."""
        return self._find("true")

    def of_version(self, version: int) -> StoredModel:
        """The model that round `version` made; 0 for the initial one. It may be no longer kept.

        Raises:
            UnknownModel: that round made none.
        """
        found = self._find("version = ?", version)
        if found is None:
            raise UnknownModel(f"no global model came out of round {version}")
        return found

    def collect(self, digests: Collection[bytes]) -> None:
        """Remove the files of these models, rows first: a file that no row claims is litter, one missing a loss."""
        with self._lock:
            with self._database.transaction() as cursor:
                cursor.executemany("UPDATE models SET kept = 0 WHERE sha256 = ?", [(sha256,) for sha256 in digests])
            for sha256 in digests:
                self._files.remove(self._path(sha256))

    def _find(self, condition: str, *values: object) -> StoredModel | None:
        sql = "SELECT version, manifest, kept FROM versions JOIN models USING (sha256) WHERE "
        rows = self._database.query(f"{sql}{condition} ORDER BY version DESC LIMIT 1", *values)
        if not rows:
            return None
        version, text, kept = rows[0]
        return self._stored(version, *self._read_manifest(text), kept=bool(kept))

    def _stored(self, version: int, manifest: Manifest, digest: Digest, *, kept: bool) -> StoredModel:
        return StoredModel(version, digest, manifest, self._path(digest.sha256), kept)

    def _path(self, sha256: bytes) -> Path:
        return self._folder / f"{sha256.hex()}.safetensors"


def _read_manifest(text: bytes) -> tuple[Manifest, Digest]:
    manifest = parse_canonical(text)
    return manifest, manifest.model_digest()


def _parts(
    schema: ModelSchema, tensors: Iterable[tuple[TensorEntry, np.ndarray]], entries: list[TensorEntry]
) -> Iterator[bytes | memoryview]:
    """The pieces of a model's file; `entries` gets what stands in the header and, besides, the digests."""
    yield header_of(schema)
    for spec, (entry, values) in zip(schema, tensors, strict=True):
        assert (entry.name, entry.dtype, entry.shape) == (spec.name, spec.dtype, spec.shape), "in schema order"
        entries.append(entry)
        yield raw_bytes(values)


def _unknown() -> UnknownModel:
    return UnknownModel("no model of that digest is published now; use the base model of the current offer")
