"""Checksums of rows. A moment."""

from __future__ import annotations

import pytest

from fedserver.store.row_checks import row_crc32c

pytestmark = pytest.mark.numpy_task


def test_row_crc32c_is_of_the_sizes_and_the_values() -> None:
    # crc32c of "9;123456789" by the published check value's algorithm, computed bit by bit below.
    assert row_crc32c(b"123456789") == bit_by_bit(b"9;123456789")
    assert row_crc32c(b"a", None, b"") == bit_by_bit(b"1,-,0;a;;")


@pytest.mark.parametrize(
    ("one", "other"),
    [((b"ab", b"c"), (b"a", b"bc")), ((None,), (b"",)), ((b"a;b",), (b"a", b"b")), ((b"",), (b"", b""))],
)
def test_row_crc32c_differs_where_values_moved_between_columns(one: tuple[bytes], other: tuple[bytes]) -> None:
    assert row_crc32c(*one) != row_crc32c(*other)


def bit_by_bit(data: bytes) -> int:
    """crc32c as RFC 3720 defines it, without tables."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF
