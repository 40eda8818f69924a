"""How sizes are shown."""

from __future__ import annotations

import pytest

from fedstream.sizes import part_of, size


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (9_437_184, "9.4 MB"),
        (1.4e9, "1.4 GB"),
        (2.2e12, "2.2 TB"),
        (3e15, "3000.0 TB"),
    ],
)
def test_size_has_the_unit_that_makes_it_short(num_bytes: float, shown: str) -> None:
    assert size(num_bytes) == shown


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (0, 0, "0 of 0 bytes"),
        (12, 512, "12 of 512 bytes"),
        (3_100_000, 9_000_000, "3.1 of 9.0 MB"),
        (500, 9_000_000, "0.0 of 9.0 MB"),
        (999_960, 999_970, "1.0 of 1.0 MB"),
    ],
)
def test_part_has_the_unit_of_the_whole(done: float, total: float, shown: str) -> None:
    assert part_of(done, total) == shown
