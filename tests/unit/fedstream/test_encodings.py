"""Encodings: bytes, what they lose, and bytes that are not what they are said to be."""

from __future__ import annotations

from io import BytesIO

import ml_dtypes
import numpy as np
import pytest
import zstandard

from fedstream.dtypes import DataType
from fedstream.encodings import (
    BLOCK_ELEMENTS,
    PIECE_BYTES,
    DecodingError,
    Encoded,
    Encoding,
    check_encoded,
    decode,
    encode,
    suits,
)
from fedstream.errors import InvalidManifest
from fedstream.manifest import Digest, TensorEntry

pytestmark = pytest.mark.numpy_task

LOSSY = [encoding for encoding in Encoding if encoding.is_lossy]
SIZES = [1, 255, 256, 257, 1000, PIECE_BYTES // 4, PIECE_BYTES // 4 + 1, 3 * PIECE_BYTES // 4 + 77]


def entry_for(values: np.ndarray) -> TensorEntry:
    return TensorEntry("t", DataType.of(values.dtype), values.shape, Digest(b"\0" * 32, values.nbytes))


def decoded(encoding: Encoding, data: bytes, like: np.ndarray, base: np.ndarray | None = None) -> np.ndarray:
    file = BytesIO(data + b"what follows")
    start = np.zeros(like.size, like.dtype) if base is None else base.reshape(-1)
    pieces = decode(Encoded(encoding, len(data)), file, entry_for(like), lambda begin, end: start[begin:end])
    found = np.concatenate([*pieces, np.empty(0, like.dtype)]).reshape(like.shape)
    assert file.read() == b"what follows"
    return found


def moved(size: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * 10.0 ** rng.integers(-6, 2, size)).astype(np.float32)


@pytest.mark.parametrize("dtype", [member.numpy for member in DataType])
@pytest.mark.parametrize("encoding", [Encoding.RAW, Encoding.ZSTD])
def test_lossless_encodings_give_every_dtype_back_bit_for_bit(encoding: Encoding, dtype: np.dtype) -> None:
    values = np.random.default_rng(2).integers(0, 2, (70, 501)).astype(dtype)
    again = decoded(encoding, encode(encoding, values), values)
    assert again.tobytes() == values.tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoding", LOSSY)
def test_lossy_encodings_are_as_precise_as_they_say(encoding: Encoding, size: int) -> None:
    change, base = moved(size), moved(size, seed=2)
    arrived = decoded(encoding, encode(encoding, change), change)
    if encoding.inner is Encoding.BFLOAT16:
        assert np.array_equal(arrived, change.astype(ml_dtypes.bfloat16).astype(np.float32))
        assert np.all(np.abs(arrived - change) <= np.abs(change) * 2.0**-8)
    else:
        for start in range(0, size, BLOCK_ELEMENTS):
            block = slice(start, start + BLOCK_ELEMENTS)
            largest = np.abs(change[block]).max()
            assert np.abs(arrived[block] - change[block]).max() <= largest / 127 * 0.5001
    assert np.array_equal(decoded(encoding, encode(encoding, change), change, base), base + arrived)


def test_int8_bytes_are_scales_then_codes() -> None:
    change = np.array([1.27, -0.01, 0.0, 0.635], np.float32)
    assert encode(Encoding.INT8, change) == np.float32(0.01).tobytes() + bytes([127, 0xFF, 0, 64])
    two = np.concatenate([np.full(BLOCK_ELEMENTS, 127.0), [-254.0]]).astype(np.float32)
    assert encode(Encoding.INT8, two) == np.array([1.0, 2.0], "<f4").tobytes() + b"\x7f" * BLOCK_ELEMENTS + b"\x81"


def test_bfloat16_bytes_are_the_upper_halves_rounded_to_even() -> None:
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x80000000], np.uint32)
    expected = np.array([0x3F80, 0x3F80, 0x3F82, 0x3F81, 0x8000], "<u2").tobytes()
    assert encode(Encoding.BFLOAT16, bits.view(np.float32)) == expected


@pytest.mark.parametrize("tiny", [0.0, 1e-45, -1e-44])
def test_int8_block_of_next_to_nothing_is_nothing(tiny: float) -> None:
    change = np.full(300, tiny, np.float32)
    assert not np.any(decoded(Encoding.INT8, encode(Encoding.INT8, change), change))


def test_update_takes_a_half_and_a_quarter_of_the_bytes() -> None:
    change = moved(1 << 20)
    assert change.nbytes / len(encode(Encoding.BFLOAT16, change)) == 2.0
    assert change.nbytes / len(encode(Encoding.INT8, change)) > 3.9


def test_small_tensors_and_those_of_other_dtypes_travel_as_they_are_where_that_would_cost_precision() -> None:
    large, small = np.zeros(1024, np.float32), np.zeros(1023, np.float32)
    for encoding in LOSSY:
        assert suits(encoding, entry_for(large))
        assert not suits(encoding, entry_for(small))
        assert not suits(encoding, entry_for(large.astype(np.float64)))
    assert suits(Encoding.ZSTD, entry_for(small.astype(np.int8)))
    assert not suits(Encoding.ZSTD, entry_for(np.empty((0, 3), np.float32)))


# Bytes that are not what they are declared to be.


@pytest.mark.parametrize("encoding", list(Encoding))
def test_bytes_cut_short_or_too_long_are_refused(encoding: Encoding) -> None:
    change = moved(1000)
    data = encode(encoding, change)
    for wrong in (data[:-1], data[: len(data) // 2], b"", data + b"\0"):
        with pytest.raises(DecodingError, match="tensor t"):
            decoded(encoding, wrong, change)


@pytest.mark.parametrize("has_content_size", [False, True])
@pytest.mark.parametrize("has_checksum", [False, True])
@pytest.mark.parametrize("size", [1, 10, 1000, 70_000, 1_000_000])
def test_frame_is_taken_whole_and_alone_however_zstd_writes_it(
    size: int, has_checksum: bool, has_content_size: bool
) -> None:
    change = moved(size)
    compressor = zstandard.ZstdCompressor(write_checksum=has_checksum, write_content_size=has_content_size)
    frame = compressor.compress(change.tobytes())
    assert np.array_equal(decoded(Encoding.ZSTD, frame, change), change)
    nothing = compressor.compress(b"")
    for wrong in (frame + nothing, nothing + frame, frame + frame, *(frame[:-cut] for cut in range(1, 9))):
        with pytest.raises(DecodingError, match="tensor t"):
            decoded(Encoding.ZSTD, wrong, change)


@pytest.mark.parametrize("encoding", [encoding for encoding in Encoding if encoding.is_compressed])
def test_frames_that_are_no_frames_or_ask_for_much_memory_are_refused(encoding: Encoding) -> None:
    change = np.zeros(4 << 20, np.float32)
    inner = encode(encoding.inner, change)
    wide = zstandard.ZstdCompressionParameters(window_log=27)
    for wrong in (b"\x28\xb5\x2f\xfd" + b"\xff" * 40, b"\0" * 100):
        with pytest.raises(DecodingError):
            decoded(encoding, wrong, change)
    frame = zstandard.ZstdCompressor(compression_params=wide).compressobj()  # of a size it does not say
    data = frame.compress(inner) + frame.flush()
    with pytest.raises(DecodingError, match="zstd frame"):
        decoded(encoding, data, change)


@pytest.mark.parametrize("encoding", [encoding for encoding in Encoding if encoding.is_compressed])
def test_frame_of_far_more_than_the_tensor_is_not_unpacked(encoding: Encoding) -> None:
    change = np.zeros(1000, np.float32)
    bomb = zstandard.ZstdCompressor().compress(b"\0" * (64 << 20))
    with pytest.raises(DecodingError, match="more bytes than its values need"):
        decoded(encoding, bomb, change)


class CountingFile(BytesIO):
    """Counts how often it is read."""

    num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.num_reads += 1
        return super().read(size)


def zeros_after_empty_blocks(num_bytes: int, num_empty: int) -> bytes:
    """A frame with a window of 2 MiB. A block of zeros is one, and how often it is repeated, 128 KiB at most."""
    lengths = [min(128 << 10, num_bytes - start) for start in range(0, num_bytes, 128 << 10)]
    blocks = [(length << 3 | 0b010).to_bytes(3, "little") + b"\0" for length in lengths]
    blocks[-1] = bytes([blocks[-1][0] | 1]) + blocks[-1][1:]
    return bytes.fromhex("28b52ffd 00 58") + bytes(3 * num_empty) + b"".join(blocks)


@pytest.mark.parametrize("num_bytes", [1, 4_000, 1_000_000])
def test_frame_of_more_blocks_than_any_encoder_makes_is_refused_without_a_look_at_them_all(num_bytes: int) -> None:
    values, most = np.zeros(num_bytes, np.int8), num_bytes // 128 + 512
    num_full = -(-num_bytes // (128 << 10))
    assert np.array_equal(decoded(Encoding.ZSTD, zeros_after_empty_blocks(num_bytes, most - num_full), values), values)
    for num_empty in (most - num_full + 1, 100_000):
        frame = zeros_after_empty_blocks(num_bytes, num_empty)
        file = CountingFile(frame)
        with pytest.raises(DecodingError, match=f"at most {most} blocks"):
            list(decode(Encoded(Encoding.ZSTD, len(frame)), file, entry_for(values), lambda begin, end: values))
        assert file.num_reads <= most + 1


@pytest.mark.parametrize(
    ("encoding", "size"),
    [
        (Encoding.RAW, 3999),
        (Encoding.BFLOAT16, 2001),
        (Encoding.INT8, 1000),
        (Encoding.INT8, 1017),
        (Encoding.ZSTD, 0),
        (Encoding.ZSTD, 4000 + 4000 // 128 + 513),
        (Encoding.INT8_ZSTD, 2000),
    ],
)
def test_declared_size_that_no_encoder_gives_is_refused(encoding: Encoding, size: int) -> None:
    with pytest.raises(InvalidManifest, match=f"encoded_size_bytes of {size} in "):
        check_encoded(Encoded(encoding, size), entry_for(np.zeros(1000, np.float32)))


@pytest.mark.parametrize("encoding", list(Encoding))
def test_declared_size_of_what_was_encoded_is_taken(encoding: Encoding) -> None:
    change = np.random.default_rng(3).bytes(4000)
    numbers = np.nan_to_num(np.frombuffer(change, np.float32), nan=1.0, posinf=1.0, neginf=1.0)
    check_encoded(Encoded(encoding, len(encode(encoding, numbers))), entry_for(numbers))


@pytest.mark.parametrize("encoding", LOSSY)
def test_lossy_encoding_of_another_dtype_is_refused(encoding: Encoding) -> None:
    with pytest.raises(InvalidManifest, match="for float32 alone"):
        check_encoded(Encoded(encoding, 2000), entry_for(np.zeros(1000, np.float64)))
