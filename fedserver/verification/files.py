"""Stored files against their manifests, and the uploads' rows against the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedserver.store import StateReader, UploadState
from fedserver.store.blobs import damages
from fedserver.store.ledger import Entry, UpdateEntry
from fedserver.store.models import StoredModel
from fedserver.store.uploads import FinishedUpload, collected_up_to, finished_uploads
from fedserver.verification.findings import Difference
from fedstream.errors import InvalidManifest, UnknownModel


class Shelf:
    """The models of a state directory; each file is read through once, however many rounds refer to it."""

    def __init__(self, reader: StateReader) -> None:
        self._models = reader.models()
        self._known: dict[bytes, list[Difference]] = {}

    def model(self, digest: str) -> tuple[StoredModel | None, list[Difference]]:
        """A model by its digest in hexadecimal, and what differs. Without a sound file it has only its manifest."""
        sha256 = bytes.fromhex(digest)
        try:
            model = self._models.of_digest(sha256)
        except UnknownModel:
            return None, [Difference(f"model {digest}", "its manifest is missing from the database")]
        except InvalidManifest as error:
            return None, [Difference(f"model {digest}", f"its manifest is damaged: {error.message}")]
        return model, self._found(model) if model.kept else []

    def has_sound_file(self, model: StoredModel) -> bool:
        """Whether the model's file is there, and every byte of it as it should be."""
        return model.kept and not self._found(model)

    def _found(self, model: StoredModel) -> list[Difference]:
        sha256 = model.digest.sha256
        if sha256 not in self._known:
            found = [Difference(str(model.path), one.problem) for one in damages(model.path, model.manifest.entries)]
            # Beside a running server the file may have been collected after its row was read.
            self._known[sha256] = found if not found or self._models.of_digest(sha256).kept else []
        return self._known[sha256]


def updates_of(reader: StateReader, number: int) -> tuple[dict[int, FinishedUpload], list[Difference]] | None:
    """A round's stored updates by rank, and what differs from their manifests; `None` where they have been collected.

    Asked last, since a server may do that while rows and files are looked at.
    """
    uploads = finished_uploads(reader.database, reader.updates_folder, number)
    found = [
        Difference(str(one.update.path), damage.problem)
        for one in uploads
        for damage in damages(one.update.path, one.update.entries)
    ]
    if collected_up_to(reader.database) >= number:
        return None
    return {one.rank: one for one in uploads}, found


def as_recorded(entry: Entry, uploads: Mapping[int, FinishedUpload]) -> Iterator[Difference]:
    """What the ledger says of a round's updates against the rows of the uploads."""
    for member in entry.cohort:
        where, stored = f"entry.cohort[{member.rank}].update", uploads.get(member.rank)
        if stored is None:
            if member.update is not None:
                yield Difference(where, f"the update of {member.client} is missing from the store")
        elif member.update is None:
            # One that came too late, after the entry was written, is kept aside and changes nothing.
            if stored.state is not UploadState.QUARANTINED:
                yield Difference(where, f"there is none, but an admitted one of {member.client} is stored")
        else:
            yield from _compared(where, member.update, stored)


def _compared(where: str, update: UpdateEntry, stored: FinishedUpload) -> Iterator[Difference]:
    for name, recorded, held in (
        ("model_digest", update.model_digest, stored.update.manifest.model_digest().hex),
        ("num_examples", update.num_examples, stored.update.facts.num_examples),
        ("admission", update.admission, stored.state.value),
    ):
        if recorded != held:
            yield Difference(f"{where}.{name}", f"it is {recorded}, but the stored update has {held}")
