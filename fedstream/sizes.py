"""Bytes for people, written in one way wherever they are shown: in powers of ten, as disks and lines are sold."""

from __future__ import annotations

_UNITS = ("kB", "MB", "GB", "TB")


def size(num_bytes: float) -> str:
    """`512 bytes`, `14.6 kB`, `9.4 MB`, `1.4 GB`."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} {'byte' if num_bytes == 1 else 'bytes'}"
    value, unit = num_bytes / 1000, _UNITS[0]
    for larger in _UNITS[1:]:
        if round(value, 1) < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"


def part_of(done_bytes: float, total_bytes: float) -> str:
    """`3.1 of 9.0 MB`: both in the unit of the whole."""
    total = size(total_bytes)
    number, unit = total.split()
    if "." not in number:
        return f"{done_bytes:.0f} of {total}"
    return f"{done_bytes / 1000 ** (_UNITS.index(unit) + 1):.1f} of {total}"
