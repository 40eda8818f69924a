"""Whether a stored weights file still holds what its manifest says.

Files are read, not mapped: where the medium fails, a read is an error with a name, and a mapped page is a signal that
ends the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedserver.store.errors import DamagedFile
from fedstream.manifest import TensorEntry
from fedstream.weights_file import header_of

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong with a file. `tensor` is empty where it is not about one."""

    problem: str
    tensor: str = ""


def damages(path: Path, entries: Sequence[TensorEntry]) -> Iterator[Damage]:
    """Everything that is wrong with a file that should hold just `entries`, in order. Reads every byte, in blocks."""
    header = header_of(entries)
    try:
        with path.open("rb") as file:
            if file.read(len(header)) != header:
                yield Damage("is damaged: its header is not the one its manifest makes")
                return
            yield from _damaged_tensors(file, entries)
            if file.read(1):
                yield Damage("is damaged: it is longer than its manifest says")
    except FileNotFoundError:
        yield Damage("is missing")
    except OSError as error:
        yield Damage(f"cannot be read ({error.strerror})")


def _damaged_tensors(file: BinaryIO, entries: Sequence[TensorEntry]) -> Iterator[Damage]:
    for entry in entries:
        if sha256_of_next(file, entry.size_bytes) != entry.digest.sha256:
            yield Damage(f"is damaged: tensor {entry.name} does not match its digest", entry.name)


def check_file(path: Path, entries: Sequence[TensorEntry], way_out: str) -> None:
    """Check a whole file.

    Raises:
        DamagedFile: names the first thing that is wrong, and says `way_out`.
    """
    for damage in damages(path, entries):
        raise DamagedFile(path, damage.problem, way_out, damage.tensor)


def sha256_of_next(file: BinaryIO, size_bytes: int) -> bytes:
    """sha256 of the next bytes of a file; of fewer, where it ends before."""
    digest, left = hashlib.sha256(), size_bytes
    while left and (block := file.read(min(left, BLOCK_BYTES))):
        digest.update(block)
        left -= len(block)
    return digest.digest()
