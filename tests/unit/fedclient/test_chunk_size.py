"""How large chunks are after cuts, stalls and what got through. A moment."""

from __future__ import annotations

from fedclient.chunk_size import LEAST_CHUNK_BYTES, ChunkSize
from fedstream import limits

MIB = 1 << 20


def test_cuts_before_anything_got_through_lead_in_few_tries_to_the_least() -> None:
    size, used = ChunkSize(), [2 * MIB]
    while used[-1] > LEAST_CHUNK_BYTES:
        size.note_cut(used[-1])
        used.append(size.most_bytes)
    assert used == [2 * MIB >> halved for halved in range(8)]
    size.note_cut(LEAST_CHUNK_BYTES)
    assert size.most_bytes == LEAST_CHUNK_BYTES


def test_stream_that_stood_still_quarters() -> None:
    size = ChunkSize()
    size.note_stall(2 * MIB)
    assert size.most_bytes == MIB // 2


def test_what_an_older_stream_with_larger_chunks_met_does_not_make_them_larger_again() -> None:
    size = ChunkSize()
    size.note_cut(MIB)
    size.note_cut(2 * MIB)
    assert size.most_bytes == MIB // 2


def test_line_that_is_cut_after_a_few_chunks_keeps_their_size() -> None:
    size = ChunkSize()
    size.note_cut(2 * MIB)
    for _ in range(100):
        size.note_run(5 * MIB)
    assert size.most_bytes == MIB


def test_line_that_is_mended_has_large_chunks_again() -> None:
    size = ChunkSize()
    size.note_cut(2 * LEAST_CHUNK_BYTES)
    size.note_run(16 * LEAST_CHUNK_BYTES - 1)
    assert size.most_bytes == LEAST_CHUNK_BYTES
    size.note_run(16 * LEAST_CHUNK_BYTES)
    assert size.most_bytes == 2 * LEAST_CHUNK_BYTES
    size.note_run(64 * MIB)
    assert size.most_bytes == limits.MAX_CHUNK_BYTES
