"""Updates as they are kept: a weights file, and what the client said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedserver.store.blobs import check_file
from fedserver.store.errors import DamagedFile
from fedstream.encodings import Encoded
from fedstream.files import forget_pages
from fedstream.manifest import Manifest, TensorEntry
from fedstream.weights_file import WeightsFile, WeightsFileError

WAY_OUT = "start `fedserver run` again, and the site is asked to send it again"
WAY_OUT_OVER = "nothing but `fedserver verify` needs it; `fedserver gc --keep-rounds 0` removes it"
"""Of an update whose round is over."""

_WORTH_FORGETTING_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class UpdateFacts:
    """What a client says of its update. `training_seconds` is by its own clock.

    `encoded` has, by name, how tensors travelled that did not as they are; `undefined` why metrics have no value.
    """

    num_examples: int
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    epochs: int = 0
    training_seconds: float = 0.0
    encoded: Mapping[str, Encoded] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Update:
    """A stored update: the file with the tensors that the server lacked, and what the client said of it.

    `manifest` is of the whole update, `missing` has the indexes in it of what the file holds.
    """

    path: Path
    facts: UpdateFacts
    manifest: Manifest
    missing: Sequence[int]

    @property
    def entries(self) -> list[TensorEntry]:
        """What the file holds, in order."""
        return [self.manifest.entries[index] for index in self.missing]

    def tensors(self) -> Mapping[str, np.ndarray]:
        """Its tensors, read-only, each in memory only while it is held.

        Raises:
            DamagedFile: the file is missing or no longer a weights file.
        """
        try:
            return WeightsFile(self.path, self.entries).on_demand()
        except (WeightsFileError, OSError) as error:
            raise DamagedFile(self.path, f"cannot be used ({error})", WAY_OUT) from error

    def check(self) -> None:
        """Compare every byte of the file with the manifest.

        Raises:
            DamagedFile: names the tensor.
        """
        check_file(self.path, self.entries, WAY_OUT)

    def set_aside(self) -> None:
        """It will hardly be read again: let its memory be used for others. A small one's is not worth the calls."""
        if sum(entry.size_bytes for entry in self.entries) >= _WORTH_FORGETTING_BYTES:
            forget_pages(self.path)
