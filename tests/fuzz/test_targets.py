"""A little of the fuzzing with each run of the tests, without atheris: sound inputs, and changes of them."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS, Target, run_one

pytestmark = pytest.mark.numpy_task

INPUTS = 300


@pytest.mark.parametrize("name", TARGETS)
def test_reader_takes_or_refuses_whatever_it_is_given(name: str) -> None:
    target = TARGETS[name]
    for number, data in enumerate(target.seeds * (INPUTS // len(target.seeds))):
        run_one(target, data if number < len(target.seeds) else _changed(target, data, number))


def test_defect_of_a_reader_is_raised() -> None:
    def read(data: bytes) -> None:
        raise KeyError(data)

    with pytest.raises(KeyError):
        run_one(Target(read, [b"x"]), b"x")


def _changed(target: Target, data: bytes, seed: int) -> bytes:
    if target.kind is not None and seed % 2:
        return mutated(target.kind, data, seed)
    rng, changed = random.Random(seed), bytearray(data)
    for _ in range(rng.randint(1, 5)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randint(1, len(changed))])
