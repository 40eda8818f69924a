"""Facts with their digest. A moment."""

from __future__ import annotations

import pytest

from fedclient.sealed import seal, unseal

pytestmark = pytest.mark.numpy_task

FACTS = {"federation": "north", "rows": [{"round": 1, "loss": 0.5}], "epoch_seconds": None}


def test_sealed_facts_are_read_back() -> None:
    assert unseal(seal(FACTS)) == FACTS


def test_every_flipped_bit_is_found() -> None:
    sealed = seal(FACTS)
    for place in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="digest"):
            unseal(bytes(damaged))
