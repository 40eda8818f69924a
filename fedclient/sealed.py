"""Small facts in a file, as JSON that says whether it still is what was written.

A flipped bit in a number is a number too: `{"sha256": ..., "record": ...}` holds the record as text, with its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def seal(facts: Mapping[str, Any]) -> bytes:
    """The contents of a file with these facts."""
    text = json.dumps(facts, sort_keys=True)
    return json.dumps({"sha256": _sha256(text), "record": text}).encode()


def unseal(contents: bytes) -> Any:
    """The facts in a file.

    Raises:
        ValueError: they are not what was written.
    """
    try:
        envelope = json.loads(contents)
        text, sha256 = str(envelope["record"]), envelope["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"it holds no facts with their digest ({error})") from error
    if _sha256(text) != sha256:
        raise ValueError("its facts do not match their digest")
    return json.loads(text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
