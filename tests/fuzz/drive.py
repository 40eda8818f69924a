"""One target under atheris, in an environment that has it: a name, a folder of inputs, and options of libFuzzer's."""

from __future__ import annotations

import sys
from collections.abc import Callable

import atheris
from google.protobuf.message import Message

from tests.fuzz.mutation import mutated

with atheris.instrument_imports(include=["fedclient", "fedserver", "fedstream"]):
    from tests.fuzz.targets import TARGETS, run_one


def main() -> None:
    """Feed the target until told to stop."""
    name, folder, *options = sys.argv[1:]
    target = TARGETS[name]
    atheris.Setup(
        [sys.argv[0], folder, *options],
        lambda data: run_one(target, data),
        custom_mutator=None if target.kind is None else _mutator(target.kind),
    )
    atheris.Fuzz()


def _mutator(kind: type[Message]) -> Callable[[bytes, int, int], bytes]:
    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        # One in four as libFuzzer would, for the parser itself.
        return atheris.Mutate(data, max_size) if seed % 4 == 0 else mutated(kind, data, seed)[:max_size]

    return mutate


if __name__ == "__main__":
    main()
