"""A download into its place: any tensors, any of them known, any chunks, left and taken up again anywhere."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedclient.partial import PartialModel
from fedstream.body import make_chunk
from fedstream.dtypes import DataType
from fedstream.files import RealFileSystem
from fedstream.manifest import Digest, manifest_of, raw_bytes
from fedstream.schema import ModelSchema, TensorSpec
from fedstream.weights_file import FileSpan, WeightsFile, file_parts

FILES = RealFileSystem()

lengths = st.lists(st.integers(0, 40), min_size=1, max_size=8)
choices = st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=6)
"""Which tensors are known at each opening: other models come and go in between."""
chunks = st.lists(st.integers(1, 90), min_size=1, max_size=5)


@given(lengths=lengths, choices=choices, chunks=chunks, left_after=st.integers(1, 200))
def test_download_left_anywhere_asks_for_no_byte_twice_and_ends_as_the_weights_file(
    lengths: list[int], choices: list[set[int]], chunks: list[int], left_after: int
) -> None:
    schema = ModelSchema(tuple(TensorSpec(f"t{i}", DataType.UINT8, (length,)) for i, length in enumerate(lengths)))
    rng = np.random.default_rng(len(lengths))
    weights = {spec.name: rng.integers(0, 256, spec.shape, np.uint8) for spec in schema}
    manifest = manifest_of(schema, weights)
    whole = b"".join(bytes(part) for part in file_parts(manifest, weights))
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder, "source"), Path(folder, "partial")
        source.write_bytes(whole)
        spans = WeightsFile(source)
        sent = 0
        for turn, choice in enumerate([*choices, set()]):
            known: dict[Digest, FileSpan] = {
                manifest.entries[i].digest: spans.span(f"t{i}") for i in choice if i < len(lengths)
            }
            partial = PartialModel(manifest, path, FILES, known)
            partial.open()
            body = b"".join(bytes(raw_bytes(weights[f"t{i}"])) for i in partial.lacking)
            stop = len(body) if turn == len(choices) else min(len(body), partial.kept + left_after)
            number = 0
            while partial.kept < stop:
                offset = partial.kept
                data = body[offset : min(stop, offset + chunks[number % len(chunks)])]
                partial.take(make_chunk(offset, data))
                sent, number = sent + len(data), number + 1
                assert partial.kept == offset + len(data)
            partial.close()

        assert path.read_bytes() == whole
        assert sent <= manifest.size_bytes
