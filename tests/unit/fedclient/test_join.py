"""Which token is taken from what an operator gives. A moment; joining itself is in `tests/e2e/test_joining.py`."""

from __future__ import annotations

import pytest

from fedclient.exit_codes import ExitCode, Stop
from fedclient.join import places, read_token
from fedstream.join_token import JoinToken

pytestmark = pytest.mark.numpy_task

TOKENS = [
    JoinToken(bytes(range(8)), b"sixteen secret b", "sha256:" + "4f" * 32, name, "fl.example.org:8443", "[::1]:8444")
    for name in ("site-a", "site-b")
]
TEXT, OTHER = (token.encode() for token in TOKENS)
COMMAND = f"fedclient join fl.example.org:8443 --token {TEXT}"
PRINTED = f"site-a joins once, until 2026-12-01 10:00 UTC, with\n\n    {COMMAND}\n\nand then takes part with"


@pytest.mark.parametrize(
    "text", [TEXT, f"\n {TEXT[:40]}\n{TEXT[40:]}\n", PRINTED, f"{PRINTED} once more {TEXT}"], ids=len
)
def test_token_is_found_alone_broken_in_two_and_in_what_invite_printed(text: str) -> None:
    assert read_token(text) == TOKENS[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{PRINTED} {OTHER}", "there are 2 join tokens in this text: give the one that is for this site"),
        (PRINTED.replace(TEXT, TEXT[:-9]), "the join token is damaged: copy it again, whole"),
        (PRINTED.replace(TEXT, ""), "this is no join token: one begins with fsj1_, as `fedserver invite` prints it"),
    ],
)
def test_text_without_one_token_is_refused_and_says_why(text: str, message: str) -> None:
    with pytest.raises(Stop) as caught:
        read_token(text)

    assert (caught.value.code, caught.value.message) == (ExitCode.BAD_CONFIGURATION, message)


@pytest.mark.parametrize(
    ("server", "enrolment", "found"),
    [
        (None, None, ("fl.example.org:8443", "[::1]:8444")),
        ("10.0.0.1:9443", None, ("10.0.0.1:9443", "10.0.0.1:8444")),
        ("10.0.0.1:9443", "10.0.0.2:9", ("10.0.0.1:9443", "10.0.0.2:9")),
    ],
)
def test_place_is_where_the_token_says_but_for_what_is_given(
    server: str | None, enrolment: str | None, found: tuple[str, str]
) -> None:
    assert places(TOKENS[0], server, enrolment) == found


@pytest.mark.parametrize(("server", "enrolment"), [("10.0.0.1:8444", None), (None, "fl.example.org:8443")])
def test_one_port_for_both_server_and_joining_is_refused_before_the_token_is_used(
    server: str | None, enrolment: str | None
) -> None:
    with pytest.raises(Stop) as caught:
        places(TOKENS[0], server, enrolment)
    assert caught.value.code is ExitCode.BAD_CONFIGURATION
    assert caught.value.message.endswith(
        " cannot be both the server and where sites join; the token says fl.example.org:8443 for the server, and "
        "[::1]:8444 for joining (--enrolment)"
    )
