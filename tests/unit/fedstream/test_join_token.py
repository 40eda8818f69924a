"""The join token: there and back, and every way in which it can be damaged. A moment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstream.join_token import PREFIX, JoinToken, hash_of, make_secret

pytestmark = pytest.mark.numpy_task

TOKEN = JoinToken(
    bytes(range(8)), b"sixteen secret b", "sha256:" + "4f" * 32, "site-a", "fl.example.org:8443", "fl.example.org:8444"
)


@pytest.mark.parametrize(
    ("server", "enrolment"),
    [
        ("fl.example.org:8443", "fl.example.org:8444"),
        ("fl.example.org:8443", "join.example.org:443"),
        ("[2001:db8::1]:8443", "[2001:db8::1]:8444"),
        ("127.0.0.1:1", "[::1]:65535"),
    ],
)
def test_token_is_read_as_it_was_written(server: str, enrolment: str) -> None:
    token = JoinToken(TOKEN.token_id, TOKEN.secret, TOKEN.fingerprint, "site-a", server, enrolment)
    assert JoinToken.decode(token.encode()) == token


def test_token_is_one_short_line_that_a_mail_program_may_have_broken() -> None:
    text = TOKEN.encode()
    assert len(text) < 150
    assert text.split() == [text]
    assert JoinToken.decode(f"  {text[:40]}\n {text[40:]}\n") == TOKEN


def test_token_does_not_show_its_secret() -> None:
    assert "secret" not in repr(TOKEN)


@given(place=st.integers(0, 10_000), letter=st.sampled_from("abcXYZ019-_"))
def test_token_with_one_wrong_letter_is_noticed(place: int, letter: str) -> None:
    text = TOKEN.encode()
    at = len(PREFIX) + place % (len(text) - len(PREFIX) - 1)  # of the last letter some bits mean nothing
    if text[at] != letter:
        with pytest.raises(ValueError, match=r"damaged|names no"):
            JoinToken.decode(text[:at] + letter + text[at + 1 :])


@pytest.mark.parametrize("text", ["", "x", PREFIX, TOKEN.encode()[:-5], TOKEN.encode()[5:], PREFIX + "é", PREFIX * 900])
def test_text_that_is_no_token_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="token") as caught:
        JoinToken.decode(text)
    assert text[10:] not in str(caught.value) or not text[10:]


def test_secrets_are_new_each_time_and_their_hashes_differ() -> None:
    made = [make_secret() for _ in range(100)]
    assert len({token_id for token_id, _ in made}) == len({hash_of(secret) for _, secret in made}) == 100
