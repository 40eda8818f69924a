"""An update made ready to travel in the encoding that was agreed on, once, and on disk before its first byte is sent.

What a lossy encoding leaves out of an update is added to the next one (error feedback): over the rounds nothing of the
training is lost but its timing. It counts as left out when the server has the update, and is kept in one file. What was
left out in another federation is dropped: one of another name, or that has begun its rounds anew.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
import structlog

from fedclient.models import LocalModel
from fedclient.sealed import seal, unseal
from fedclient.updates import FinishedUpdate, UpdateStore
from fedstream.dtypes import DataType
from fedstream.encodings import Encoded, Encoding, decode, encode, suits
from fedstream.files import FileSystem, write_durably
from fedstream.manifest import Digest, Manifest, TensorEntry, raw_bytes
from fedstream.weights_file import FileSpan, WeightsFile, WeightsFileError, header_of

log = structlog.get_logger()

LeftOut = Mapping[str, np.ndarray]
"""What encodings left out so far of how far each tensor was moved, float32, by name."""


@dataclass(frozen=True, slots=True)
class Packed:
    """An update as it travels: what the server is to have in the end, where each tensor's bytes stand, and in which
    encoding they are, if not raw."""

    manifest: Manifest
    spans: Mapping[str, FileSpan]
    encoded: Mapping[str, Encoded]


class Packer:
    """Packs finished updates. All methods block.

    Args:
        updates: where they are; what is packed is kept beside them.
        left_out: the file of what encodings left out.
        federation: its name; what was left out in another one is dropped.
        files: the file system.
    """

    def __init__(self, updates: UpdateStore, left_out: Path, federation: str, files: FileSystem) -> None:
        self._updates, self._left_out, self._federation, self._files = updates, left_out, federation, files

    def pack(self, base: LocalModel, finished: FinishedUpdate, encoding: Encoding, upload_id: str = "") -> Packed:
        """The update in an encoding, or as it was packed before if it was: the server may know it so already, also one
        that was started again with another encoding meanwhile. By `upload_id` it knows it.
        """
        packed = self._load(base, finished.offer_id)
        if packed is None and encoding is Encoding.RAW:
            return Packed(finished.manifest(base.manifest), base.spans() | finished.spans(), {})
        return packed or self._make(base, finished, encoding, upload_id)

    def discard(self, offer_id: str) -> None:
        """Forget what was packed, so that it is packed again."""
        self._files.remove(self._facts(offer_id))

    def delivered(self, offer_id: str) -> None:
        """The server has the update: what was left out of it is what counts from now on. Idempotent."""
        left_out = self._left_out_of(offer_id)
        if left_out.exists():
            self._files.rename(left_out, self._left_out)
            self._files.sync_folder(self._left_out.parent)

    def unsettled(self) -> list[tuple[str, str]]:
        """Offers and uploads of updates that were packed, and of which nobody has said yet that the server has them."""
        found: list[tuple[str, str]] = []
        for path in self._updates.paths("packed.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # then it is packed again, or forgotten
                facts = unseal(path.read_bytes())
                if facts["upload_id"] and self._left_out_of(facts["offer_id"]).exists():
                    found.append((facts["offer_id"], facts["upload_id"]))
        return found

    def forget(self) -> None:
        """The federation is over."""
        self._files.remove(self._left_out)

    def _body(self, offer_id: str) -> Path:
        return self._updates.path(offer_id, "packed")

    def _facts(self, offer_id: str) -> Path:
        return self._updates.path(offer_id, "packed.json")

    def _left_out_of(self, offer_id: str) -> Path:
        return self._updates.path(offer_id, "left_out.safetensors")

    # What was packed before.

    def _load(self, base: LocalModel, offer_id: str) -> Packed | None:
        path = self._facts(offer_id)
        if not path.exists():
            return None
        try:
            facts = unseal(path.read_bytes())
            with self._body(offer_id).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                    raise ValueError("its bytes do not match their digest")
            known = base.manifest.by_name()
            items = [
                _Item(_with_digest(known[name], bytes.fromhex(sha256)), Encoded(Encoding(how), size))
                for name, sha256, how, size in facts["tensors"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the update packed before is damaged and is packed again", damage=str(error))
            return None
        return self._packed(base, offer_id, items)

    def _packed(self, base: LocalModel, offer_id: str, items: list[_Item]) -> Packed:
        spans, place = dict(base.spans()), 0
        for item in items:
            spans[item.entry.name] = FileSpan(self._body(offer_id), place, item.encoded.size_bytes)
            place += item.encoded.size_bytes
        entries = {item.entry.name: item.entry for item in items}
        manifest = Manifest(tuple(entries.get(entry.name, entry) for entry in base.manifest))
        encoded = {item.entry.name: item.encoded for item in items if item.encoded.encoding is not Encoding.RAW}
        return Packed(manifest, spans, encoded)

    # Packing.

    def _make(self, base: LocalModel, finished: FinishedUpdate, encoding: Encoding, upload_id: str) -> Packed:
        items: list[_Item] = []
        left_out = dict(self._left_out_so_far(base.manifest, finished.round)) if encoding.is_lossy else {}
        whole = hashlib.sha256()

        def parts() -> Iterator[bytes]:
            trained, started = WeightsFile(finished.path).on_demand(), WeightsFile(base.path).on_demand()
            for record in finished.update.changed:
                entry = record.entry()
                item, data = _pack(entry, trained[entry.name], started[entry.name], encoding, left_out)
                items.append(item)
                whole.update(data)
                yield data

        offer_id = finished.offer_id
        write_durably(self._files, self._body(offer_id), parts())
        if encoding.is_lossy:
            self._keep_left_out(finished, left_out)
        facts = {
            "offer_id": offer_id,
            "upload_id": upload_id,
            "encoding": encoding.value,
            "sha256": whole.hexdigest(),
            "tensors": [
                [item.entry.name, item.entry.digest.hex, item.encoded.encoding.value, item.encoded.size_bytes]
                for item in items
            ],
        }
        write_durably(self._files, self._facts(offer_id), [seal(facts)])
        packed = self._packed(base, offer_id, items)
        sizes = sum(item.entry.size_bytes for item in items), sum(item.encoded.size_bytes for item in items)
        log.info("packed the update", encoding=encoding.value, bytes=sizes[1], of=sizes[0])
        return packed

    def _left_out_so_far(self, base: Manifest, round_number: int) -> LeftOut:
        if not self._left_out.exists():
            return {}
        try:
            file = WeightsFile(self._left_out)
            manifest = file.manifest()
            if file.metadata.get("sha256") != manifest.model_digest().hex:
                raise ValueError("its bytes do not match their digest")
            is_earlier = int(file.metadata.get("round", 0)) < round_number
        except (OSError, ValueError, WeightsFileError) as error:
            log.warning("what encodings left out of earlier updates cannot be read and is lost", damage=str(error))
            return {}
        known = base.by_name()
        fits = all(entry.name in known and known[entry.name].shape == entry.shape for entry in manifest)
        if file.metadata.get("federation") != self._federation or not is_earlier or not fits:
            return {}
        return {name: np.array(values) for name, values in file.on_demand().items()}

    def _keep_left_out(self, finished: FinishedUpdate, left_out: LeftOut) -> None:
        entries = [
            TensorEntry(name, DataType.FLOAT32, values.shape, Digest.of(raw_bytes(values)))
            for name, values in left_out.items()
        ]
        digest = Manifest(tuple(entries)).model_digest().hex
        metadata = {"federation": self._federation, "round": str(finished.round), "sha256": digest}
        values = map(raw_bytes, left_out.values())
        write_durably(self._files, self._left_out_of(finished.offer_id), chain([header_of(entries, metadata)], values))


@dataclass(frozen=True, slots=True)
class _Item:
    """A tensor of the update: what the server is to have, and how it travels."""

    entry: TensorEntry
    encoded: Encoded


def _pack(
    entry: TensorEntry, trained: np.ndarray, started: np.ndarray, encoding: Encoding, left_out: dict[str, np.ndarray]
) -> tuple[_Item, bytes]:
    """A tensor and its bytes. `left_out` is changed to what this leaves out."""
    if suits(encoding, entry) and not encoding.is_lossy:
        data = encode(encoding, trained)
        return _Item(entry, Encoded(encoding, len(data))), data
    moved = _moved(trained, started, left_out.get(entry.name)) if suits(encoding, entry) else None
    if moved is None:
        return _Item(entry, Encoded(Encoding.RAW, entry.size_bytes)), bytes(raw_bytes(trained))
    data = encode(encoding, moved)
    encoded, flat = Encoded(encoding, len(data)), started.reshape(-1)
    pieces = list(decode(encoded, BytesIO(data), entry, lambda begin, end: flat[begin:end]))
    arrived = np.concatenate(pieces).reshape(entry.shape)
    left_out[entry.name] = moved - (arrived - started)
    return _Item(_with_digest(entry, hashlib.sha256(raw_bytes(arrived)).digest()), encoded), data


def _moved(trained: np.ndarray, started: np.ndarray, left_out: np.ndarray | None) -> np.ndarray | None:
    """How far a tensor is to be moved; nothing where that is no number, which is for the server to see as it is."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved: np.ndarray = trained - started
        if left_out is not None:
            moved += left_out
    return moved if np.isfinite(moved).all() else None


def _with_digest(entry: TensorEntry, sha256: bytes) -> TensorEntry:
    return TensorEntry(entry.name, entry.dtype, entry.shape, Digest(sha256, entry.size_bytes))
