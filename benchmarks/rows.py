"""What is measured: so many clients, a model of so many MiB, over such a connection."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

MIB = 1 << 20
_LARGE_MIB = 50


class Security(enum.Enum):
    """How a connection is secured. The value is the word in tables."""

    PLAIN = "plain"
    MUTUAL_TLS = "mutual TLS"


@dataclass(frozen=True, slots=True)
class Size:
    """A federation's size: `clients` send and receive a model of `mib` MiB each, a whole number of KiB."""

    clients: int
    mib: float

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read `4x9`: 4 clients, 9 MiB; or `4x0.25`.

        Raises:
            ValueError: it is no such text.
        """
        match = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)", text)
        if match is None or not int(match[1]) or not float(match[2]) or float(match[2]) * 1024 % 1:
            raise ValueError(f"{text!r} is no size; write CLIENTSxMIB, such as 4x9")
        return cls(int(match[1]), float(match[2]))

    @property
    def num_bytes(self) -> int:
        """Bytes of one model."""
        return int(self.mib * MIB)

    @property
    def rounds(self) -> int:
        """How many rounds are measured in one run, where the command does not say."""
        return 2 if self.mib >= _LARGE_MIB else 3

    def __str__(self) -> str:
        return f"{self.clients} x {self.mib:g} MiB"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    size: Size
    security: Security

    def __str__(self) -> str:
        return f"{self.size}, {self.security.value}"
