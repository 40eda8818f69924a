"""How sites are listed."""

from __future__ import annotations

import pytest

from fedserver.commands.members import Listed, state_words

pytestmark = pytest.mark.numpy_task

NOW = 1_000.0


@pytest.mark.parametrize(
    ("state", "invited_until", "certificate_until", "words"),
    [
        ("invited", NOW + 1, None, "invited"),
        ("invited", NOW, None, "invitation expired"),
        ("enrolled", None, NOW + 1, "enrolled"),
        ("enrolled", None, NOW - 1, "certificate expired"),
        ("enrolled", NOW - 1, NOW + 1, "enrolled"),
        ("revoked", None, None, "revoked"),
    ],
)
def test_site_whose_time_is_over_is_listed_as_such(
    state: str, invited_until: float | None, certificate_until: float | None, words: str
) -> None:
    assert state_words(Listed("a", state, invited_until, certificate_until, None), NOW) == words
