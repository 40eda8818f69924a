"""An update's way from a site to the server without a network: packed by what `fedclient` packs with, and unpacked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedclient.models import LocalModel
from fedclient.packing import Packed, Packer
from fedclient.updates import FinishedUpdate, UpdateStore
from fedstream.encodings import Encoded, Encoding, decode
from fedstream.files import RealFileSystem, write_durably
from fedstream.manifest import Digest, Manifest, TensorEntry, manifest_of, raw_bytes
from fedstream.schema import ModelSchema
from fedstream.weights_file import file_parts
from fedtask.messages import EntryRecord, LocalUpdate
from fedtask.task import FineTuned, Weights


class _NoSync(RealFileSystem):
    """Writes as ever, and waits for no disk: nothing here need outlive a power cut."""

    def sync(self, descriptor: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


_FILES = _NoSync()


class WrongUpdate(Exception):
    """What arrived is not what the site said it would be."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """The update as the server has it, and how many bytes of values travelled."""

    update: FineTuned
    size_bytes: int


class Journey:
    """The way of one site's updates in one encoding, over the rounds; it keeps what the encoding left out.

    Args:
        folder: its own.
        schema: of the model.
        encoding: that client and server agreed on.
    """

    def __init__(self, folder: Path, schema: ModelSchema, encoding: Encoding) -> None:
        self._folder, self._schema, self._encoding = folder, schema, encoding
        self._updates = UpdateStore(folder / "updates", _FILES)
        self._packer = Packer(self._updates, folder / "left_out.safetensors", "benchmark", _FILES)
        self._number = 0

    def carry(self, base: Weights, update: FineTuned) -> Arrived:
        """Pack the site's next update, unpack it, and check it against its digests.

        Raises:
            WrongUpdate: a tensor has another digest than it was packed with.
        """
        self._number += 1
        model = self._model(base)
        finished = self._finished(model, update)
        packed = self._packer.pack(model, finished, self._encoding)
        changed = [record.name for record in finished.update.changed]
        weights = dict(update.weights) | {name: _arrived(packed, name, base[name]) for name in changed}
        self._packer.delivered(finished.offer_id)
        self._updates.discard(finished.offer_id)
        return Arrived(replace(update, weights=weights), sum(packed.spans[name].length for name in changed))

    def _model(self, base: Weights) -> LocalModel:
        manifest, path = manifest_of(self._schema, base), self._folder / "base.safetensors"
        write_durably(_FILES, path, file_parts(manifest, base))
        return LocalModel(path, manifest)

    def _finished(self, model: LocalModel, update: FineTuned) -> FinishedUpdate:
        offer_id = f"offer-{self._number}"
        known = model.manifest.by_name()
        changed = [entry for entry in manifest_of(self._schema, update.weights) if entry != known[entry.name]]
        write_durably(
            _FILES, self._updates.weights_path(offer_id), file_parts(Manifest(tuple(changed)), update.weights)
        )
        facts = LocalUpdate(tuple(map(EntryRecord.of, changed)), update.num_examples, {}, (), 1, 0.0)
        return self._updates.record(offer_id, self._number, model.digest, facts)


def _arrived(packed: Packed, name: str, started: np.ndarray) -> np.ndarray:
    entry: TensorEntry = packed.manifest.by_name()[name]
    encoded = packed.encoded.get(name, Encoded(Encoding.RAW, entry.size_bytes))
    span, flat = packed.spans[name], started.reshape(-1)
    with span.path.open("rb") as file:
        file.seek(span.offset)
        pieces = list(decode(encoded, file, entry, lambda begin, end: flat[begin:end]))
    values = np.concatenate(pieces).reshape(entry.shape)
    if Digest.of(raw_bytes(values)) != entry.digest:
        raise WrongUpdate(f"tensor {name} arrived with other values than it was packed with")
    return values
