"""The form of an entry, which other programs must be able to make. A moment."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest

from fedserver.store.database import Database
from fedserver.store.ledger import canonical_json, hash_of, methods

pytestmark = pytest.mark.numpy_task


def test_canonical_json_sorts_keys_and_leaves_out_white_space() -> None:
    fields = {"b": [1, 2.5, None, True], "a": {"z": 'größe\n"', "ä": 10.0}, "Z": 1e-7, "10": 0.1}
    assert canonical_json(fields) == ('{"10":0.1,"Z":1e-07,"a":{"z":"größe\\n\\"","ä":10.0},"b":[1,2.5,null,true]}')


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_canonical_json_refuses_what_json_has_no_word_for(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": value})


def test_hash_is_the_sha256_of_the_utf8_bytes() -> None:
    assert hash_of('{"a":"ä"}') == hashlib.sha256(b'{"a":"\xc3\xa4"}').digest()


def test_methods_pass_over_entries_that_cannot_be_read(tmp_path: Path) -> None:
    entries = ("not JSON", '{"strategy": "fedavg"}', '{"strategy": "fedavg", "plan": {"epochs": 2}}')
    database = Database(tmp_path / "state.db")
    with database.transaction() as cursor:
        for number, entry in enumerate(entries, start=1):
            cursor.execute("INSERT INTO ledger VALUES (?, ?, ?)", (number, entry, hash_of(entry)))
    assert list(methods(database)) == [(3, "fedavg", {"epochs": 2})]
    database.close()
