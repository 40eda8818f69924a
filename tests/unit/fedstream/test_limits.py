"""What names and texts from the network may hold. A moment."""

from __future__ import annotations

import pytest

from fedstream import limits

pytestmark = pytest.mark.numpy_task


def test_chunk_and_window_bounds_keep_below_grpcs_message_limit() -> None:
    assert limits.MAX_CHUNK_BYTES == 4_128_768  # as common.proto says
    assert limits.DEFAULT_CHUNK_BYTES == 1_048_576
    assert limits.MAX_CHUNK_BYTES + (64 << 10) == 4 << 20
    assert limits.WINDOW_BYTES <= 4 << 20


@pytest.mark.parametrize("name", ["a", "0", "hospital-3", "A.b_c-d", "x" * 64])
def test_client_name_of_plain_characters_is_one(name: str) -> None:
    assert limits.is_client_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "-a",
        "_a",
        ".hidden",
        "x" * 65,
        "a b",
        "a/b",
        "a\\b",
        "a\n",
        "\na",
        "a\0",
        "ä",
        "a:b",
        "\u0661",
        "a\ud800",
    ],
)
def test_client_name_that_could_mislead_a_log_or_a_path_is_none(name: str) -> None:
    assert not limits.is_client_name(name)


@pytest.mark.parametrize("name", ["a", "block/conv:0", "../../x", "größe", "n" * 256, "ü" * 128, "\U0001d54f" * 64])
def test_tensor_name_of_up_to_256_bytes_is_one(name: str) -> None:
    assert limits.is_tensor_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "n" * 257,
        "ü" * 129,
        "\U0001d54f" * 65,
        "a\tb",
        "a\n",
        "\0",
        "\x1b[0m",
        "\x7f",
        "\x9f",
        "\ud800",
        "x" * 2**20,
    ],
)
def test_tensor_name_too_long_or_with_control_characters_is_none(name: str) -> None:
    assert not limits.is_tensor_name(name)


def test_plain_text_is_one_line_within_its_bytes() -> None:
    assert limits.is_plain_text("", 0)
    assert limits.is_plain_text("üü", 4)
    assert not limits.is_plain_text("üü", 3)
    assert not limits.is_plain_text("a\nb", 10)
    assert not limits.is_plain_text("\udce4", 10)


@pytest.mark.parametrize(
    ("text", "clipped"),
    [
        ("", ""),
        ("disk full", "disk full"),
        ("  two\nlines\t\x1b[31m ", "two lines  [31m"),
        ("safe \u202egnp.exe\u2028forged line\u2066", "safe  gnp.exe forged line"),  # turned round, and in two lines
        ("img_\udce4.png is damaged", "img_ .png is damaged"),  # a file name that is not UTF-8
        ("x" * 1_025, "x" * 1_024),
        ("x" + "ü" * 512, "x" + "ü" * 511),  # never half a character
    ],
)
def test_reason_as_it_may_be_shown_is_one_line_of_at_most_1024_bytes(text: str, clipped: str) -> None:
    assert limits.clip_reason(text) == clipped
    assert limits.is_plain_text(clipped, 1_024)


def test_reason_clipped_to_fewer_bytes_keeps_to_them() -> None:
    assert limits.clip_reason("abcdef", 4) == "abcd"
