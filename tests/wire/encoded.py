"""Tensors in every encoding, worked out in exact fractions and from the formats' bytes, not by the project's code."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction

from tests.wire import text

INFINITE = 0x7F80_0000
NEGATIVE = 0x8000_0000
LOWEST_EXPONENT = -126

Bits = Sequence[int]
"""float32 numbers, as the 32 bits of each."""


def encoded_cases() -> Iterator[text.Case]:
    """All of them, as they stand in the file."""
    yield from _bfloat16_cases()
    yield from _int8_cases()
    yield from _zstd_cases()
    yield from _refused_cases()


# float32 arithmetic, one rounding to the nearest at a time, ties to even.


def number(bits: int) -> Fraction:
    """What 32 bits of a finite float32 stand for."""
    return Fraction(struct.unpack("<f", struct.pack("<I", bits))[0])


def nearest(value: Fraction, negative_zero: bool = False) -> int:
    """The float32 nearest to `value`."""
    if value == 0:
        return NEGATIVE if negative_zero else 0
    sign, size = (NEGATIVE, -value) if value < 0 else (0, value)
    exponent = max(LOWEST_EXPONENT, size.numerator.bit_length() - size.denominator.bit_length() - 1)
    while size >= Fraction(2) ** (exponent + 1):
        exponent += 1
    steps = round(size / Fraction(2) ** (exponent - 23))  # Python rounds a fraction half to even
    return sign | min(steps + ((exponent - LOWEST_EXPONENT) << 23), INFINITE)


def is_negative(bits: int) -> bool:
    """Whether the sign bit is set, of a zero as well."""
    return bool(bits & NEGATIVE)


def add(one: int, other: int) -> int:
    """The sum; an infinity stays one."""
    for bits in (one, other):
        if bits & INFINITE == INFINITE:
            return bits
    return nearest(number(one) + number(other), is_negative(one) and is_negative(other))


def multiply(scale: int, code: int) -> int:
    """The product of a float32 and an integer of 8 bits."""
    return nearest(number(scale) * code, is_negative(scale) != (code < 0))


def as_bytes(numbers: Bits) -> bytes:
    """float32 numbers, little-endian."""
    return struct.pack(f"<{len(numbers)}I", *numbers)


# The encodings.


def to_bfloat16(bits: int) -> int:
    """The upper 16 bits, rounded to the nearest, ties to even."""
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def bfloat16(moved: Bits) -> bytes:
    """`moved` as the encoding has it."""
    return struct.pack(f"<{len(moved)}H", *map(to_bfloat16, moved))


def scale_of(block: Bits) -> int:
    """The largest absolute value, divided by 127."""
    return nearest(Fraction(max(abs(number(bits)) for bits in block), 127))


def code_of(bits: int, scale: int) -> int:
    """How many times the scale, to the nearest, ties to even, at most 127. The quotient is a float32 itself."""
    if scale == 0:
        return 0
    return max(-127, min(127, round(number(nearest(number(bits) / number(scale))))))


def int8(moved: Bits) -> bytes:
    """`moved` as the encoding has it: the scales of all blocks, then all codes."""
    blocks = [moved[start : start + 256] for start in range(0, len(moved), 256)]
    scales = [scale_of(block) for block in blocks]
    codes = [code_of(bits, scale) for block, scale in zip(blocks, scales, strict=True) for bits in block]
    return as_bytes(scales) + struct.pack(f"{len(codes)}b", *codes)


def from_int8(encoded: bytes, num_elements: int) -> Bits:
    """How far each element is moved."""
    num_blocks = -(-num_elements // 256)
    scales = struct.unpack(f"<{num_blocks}I", encoded[: 4 * num_blocks])
    codes = struct.unpack(f"{num_elements}b", encoded[4 * num_blocks :])
    return [multiply(scales[place // 256], code) for place, code in enumerate(codes)]


def _moved_from(base: Bits, moves: Bits) -> bytes:
    return as_bytes([add(one, other) for one, other in zip(base, moves, strict=True)])


def _case(name: str, encoding: str, base: Bits | None, moved: Bits | None, encoded: bytes, values: bytes) -> text.Case:
    given = {"base": as_bytes(base).hex()} if base is not None else {}
    given |= {"moved": as_bytes(moved).hex()} if moved is not None else {}
    decoded = {"values": values.hex(), "sha256": hashlib.sha256(values).hexdigest()}
    return {"case": name, "encoding": f"ENCODING_{encoding}", **given, "encoded": encoded.hex(), **decoded}


# Cases.

ONE, MINUS_ZERO = 0x3F80_0000, NEGATIVE

BFLOAT16: Sequence[tuple[str, Bits, Bits]] = [
    ("1.0, -2.0 and 0.5 from 0", [0, 0, 0], [ONE, 0xC000_0000, 0x3F00_0000]),
    (
        "ties go to the even neighbour, all else to the nearest",
        [0] * 5,
        [0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x3F81_7FFF, 0xBF80_8000],
    ),
    ("zeros of both signs", [0, 0, MINUS_ZERO, MINUS_ZERO], [0, MINUS_ZERO, 0, MINUS_ZERO]),
    ("denormals", [0] * 6, [0x0000_0001, 0x0000_8000, 0x0000_8001, 0x0001_8000, 0x007F_FFFF, 0x8000_8001]),
    ("the largest that stays finite, and the next, which becomes infinite", [0, 0], [0x7F7F_7FFF, 0x7F7F_8000]),
    ("sums are rounded once, ties to even", [ONE, 0x3F80_0001, 0xBF80_0001], [0x3380_0000, 0x3380_0000, 0xB380_0000]),
    ("a small move of a large weight vanishes in the sum", [0x4B80_0000], [0x3F00_0000]),
    ("no element", [], []),
]

RISING = [nearest(Fraction(place - 128, 1000)) for place in range(257)]

INT8: Sequence[tuple[str, Bits, Bits]] = [
    ("the scale is the largest divided by 127", [0] * 4, [nearest(Fraction(n, 1000)) for n in (1270, -10, 0, 635)]),
    ("zeros of both signs", [ONE, MINUS_ZERO, 0], [0, MINUS_ZERO, 0]),
    ("next to nothing: the scale rounds to 0, and so does every element", [ONE, 0, 0], [1, 0x3F, NEGATIVE | 0x3F]),
    ("a denormal scale: quotients over 127 are cut", [0] * 4, [0xBE, 0x64, NEGATIVE | 0xBE, 1]),
    (
        "ties go to the even code",
        [0] * 8,
        [nearest(Fraction(n, 2)) for n in (254, 1, 3, 5, -1, -3, 253, -254)],
    ),
    ("a last block of one element", [0] * 257, [*[nearest(Fraction(127))] * 256, nearest(Fraction(-254))]),
    ("a whole block and a short one, on a base", [ONE] * 257, RISING),
    ("no element", [], []),
]


def _bfloat16_cases() -> Iterator[text.Case]:
    for name, base, moved in BFLOAT16:
        values = _moved_from(base, [to_bfloat16(bits) << 16 for bits in moved])
        yield _case(f"bfloat16: {name}", "BFLOAT16", base, moved, bfloat16(moved), values)


def _int8_cases() -> Iterator[text.Case]:
    for name, base, moved in INT8:
        encoded = int8(moved)
        values = _moved_from(base, from_int8(encoded, len(moved)))
        yield _case(f"int8: {name}", "INT8", base, moved, encoded, values)
    for name, base, encoded in (
        ("a fused multiply-add would give another value", [0xBD16_D367], as_bytes([0x3A45_8769]) + b"\x56"),
        (
            "the code -128 and a negative scale, as no encoder writes",
            [ONE, 0],
            as_bytes([0xBC23_D70A]) + b"\x80\x7f",
        ),
        ("the largest scale: products that overflow", [ONE, ONE], as_bytes([0x7F7F_FFFF]) + b"\x7f\x81"),
    ):
        values = _moved_from(base, from_int8(encoded, len(base)))
        yield _case(f"int8: {name}", "INT8", base, None, encoded, values)


# zstd frames (RFC 8878), put together by hand.

MAGIC = bytes.fromhex("28b52ffd")
FOUR = as_bytes([0, ONE, 0x4000_0000, 0x4040_0000])
COMPRESSED = bytes.fromhex("28b52ffd64e0009d0000600000803e0000c0bf000040400100d1574b12876951ef")
"""0.25, -1.5, 3.0, forty times over, as zstd 1.5 writes it at level 3, with a checksum."""


def sized_frame(*blocks: bytes, size: int) -> bytes:
    """A frame that says how many bytes are in it (below 256) and needs no other window."""
    return MAGIC + b"\x20" + bytes([size]) + b"".join(blocks)


def windowed_frame(window: int, *blocks: bytes) -> bytes:
    """A frame that does not say how many bytes are in it. `window` is the byte that describes its window."""
    return MAGIC + b"\x00" + bytes([window]) + b"".join(blocks)


def raw_block(data: bytes, last: bool = True) -> bytes:
    """A block of `data` as it is."""
    return struct.pack("<I", last | len(data) << 3)[:3] + data


def repeated_block(byte: int, size: int) -> bytes:
    """A last block of one byte, so many times."""
    return struct.pack("<I", 1 | 1 << 1 | size << 3)[:3] + bytes([byte])


WINDOW_1_KIB, WINDOW_8_MIB, WINDOW_9_MIB, WINDOW_16_MIB = 0x00, 0x68, 0x69, 0x70
SOUND = sized_frame(raw_block(FOUR), size=16)
EMPTY = sized_frame(raw_block(b""), size=0)
SKIPPABLE = bytes.fromhex("502a4d18") + struct.pack("<I", 4) + b"skip"
"""Bytes that zstd passes over, as a frame of their own."""


def _zstd_cases() -> Iterator[text.Case]:
    many = as_bytes([0x3E80_0000, 0xBFC0_0000, 0x4040_0000] * 40)
    for name, frame, values in (
        ("a frame that says its size", SOUND, FOUR),
        ("two blocks", sized_frame(raw_block(FOUR[:6], last=False), raw_block(FOUR[6:]), size=16), FOUR),
        ("a block of one byte repeated", windowed_frame(WINDOW_1_KIB, repeated_block(0, 16)), bytes(16)),
        ("a window of exactly 8 MiB", windowed_frame(WINDOW_8_MIB, raw_block(FOUR)), FOUR),
        ("a compressed block and a checksum", COMPRESSED, many),
        ("no element", EMPTY, b""),
    ):
        yield _case(f"zstd: {name}", "ZSTD", None, None, frame, values)
    moved = [ONE, 0xBF00_0000]
    for encoding, inner in (("BFLOAT16", bfloat16(moved)), ("INT8", int8(moved))):
        moves = [bits << 16 for bits in map(to_bfloat16, moved)] if encoding == "BFLOAT16" else from_int8(inner, 2)
        frame, values = sized_frame(raw_block(inner), size=len(inner)), _moved_from([ONE, ONE], moves)
        name = f"{encoding.lower()} in zstd: 1.0 and -0.5 from 1.0"
        yield _case(name, f"{encoding}_ZSTD", [ONE, ONE], None, frame, values)


def _refused_cases() -> Iterator[text.Case]:
    dictionary = MAGIC + b"\x21\x07\x10" + raw_block(FOUR)
    for name, frame in (
        ("no frame at all", FOUR),
        ("a frame cut short", SOUND[:-1]),
        ("fewer values than the tensor has", sized_frame(raw_block(FOUR[:12]), size=12)),
        ("more values than the tensor has", sized_frame(raw_block(FOUR + b"\0"), size=17)),
        (
            "far more than the tensor has, one byte repeated",
            windowed_frame(WINDOW_8_MIB, repeated_block(0, 131_072)),
        ),
        ("a byte after the frame", SOUND + b"\0"),
        ("a second frame", SOUND + SOUND),
        ("a second frame with nothing in it", SOUND + EMPTY),
        ("a frame with nothing in it before", EMPTY + SOUND),
        ("a skippable frame after", SOUND + SKIPPABLE),
        ("a skippable frame before", SKIPPABLE + SOUND),
        ("a wrong checksum", COMPRESSED[:-1] + b"\0"),
        ("a checksum cut short", COMPRESSED[:-1]),
        ("a checksum that is announced and does not come", COMPRESSED[:-4]),
        ("a window of 9 MiB", windowed_frame(WINDOW_9_MIB, raw_block(FOUR))),
        ("a window of 16 MiB", windowed_frame(WINDOW_16_MIB, raw_block(FOUR))),
        ("a dictionary", dictionary),
    ):
        size = 480 if "checksum" in name else 16
        refusal = {"values": None, "size_bytes": size, "reason": "DIGEST_MISMATCH"}
        yield {"case": f"refused: {name}", "encoding": "ENCODING_ZSTD", "encoded": frame.hex(), **refusal}
