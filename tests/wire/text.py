"""The form of the vector files: comments, then cases with a blank line between them, each line `key: JSON value`.

Any language reads it with a split at the first colon and a JSON parser. Bytes are lower-case hexadecimal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "vectors"

Case = Mapping[str, Any]


def write(title: str, how: str, cases: Iterable[Case]) -> str:
    """A whole file: a title, how to read it, and the cases."""
    comments = [title, "", *how.strip().splitlines(), "", "Made by `python -m tests.wire.make_vectors`."]
    head = "".join(f"# {line}".rstrip() + "\n" for line in comments)
    return head + "".join("\n" + "".join(_lines(case)) for case in cases)


def _lines(case: Case) -> Iterable[str]:
    for key, value in case.items():
        yield f"{key}: {json.dumps(value, ensure_ascii=False)}\n"


def read(name: str) -> list[Case]:
    """The cases of a file."""
    cases: list[dict[str, Any]] = [{}]
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        if not line:
            cases.append({})
            continue
        key, value = line.split(": ", 1)
        cases[-1][key] = json.loads(value)
    return [case for case in cases if case]
