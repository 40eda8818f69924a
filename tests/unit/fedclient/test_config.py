"""What an operator may set, and what is said when it is wrong."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from fedclient.config import ClientConfig, default_name, default_state_folder, load_config
from fedclient.exit_codes import ExitCode, Stop
from fedclient.reply import SiteLimits
from fedclient.reporting import Reporting
from tests.support.users import leave_without_home

FINGERPRINT = "sha256:" + "ab" * 32
LEAST = {"server": "fl.example.org:8443", "fingerprint": FINGERPRINT, "data": "scans"}


@pytest.fixture(autouse=True)
def no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who tries the tests may be a site."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))


def message_of(file: Path | None, flags: dict[str, Any]) -> str:
    with pytest.raises(Stop) as caught:
        load_config(file, flags)
    assert caught.value.code is ExitCode.BAD_CONFIGURATION
    return caught.value.message


def test_config_of_least_flags_has_documented_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "site a.local")
    config = load_config(None, LEAST | {"max_epochs": None})

    assert config == ClientConfig(
        server="fl.example.org:8443", fingerprint=FINGERPRINT, name="site-a.local", data=Path("scans")
    )
    assert config.out_folder == Path("runs/site-a.local")
    assert config.site_limits == SiteLimits(0, None)
    assert config.shard == (0, 1)


def test_config_flags_win_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(
        f'server = "a:1"\nfingerprint = "{FINGERPRINT}"\nname = "from-file"\ndata = "phantom"\n'
        'shard = "1/4"\nmax_hours = 1.5\n[classes]\nno = "healthy"\n'
    )
    config = load_config(file, {"name": "from-flag", "server": None})

    assert (config.server, config.name, config.data, config.shard) == ("a:1", "from-flag", None, (1, 4))
    assert config.classes == {"no": "healthy"}
    assert config.site_limits == SiteLimits(0, 5400.0)


@pytest.mark.parametrize(
    ("word", "data"), [("phantom", None), ("synthetic", None), ("./phantom", Path("phantom")), ("d", Path("d"))]
)
def test_config_data_words_mean_generated_data(word: str, data: Path | None) -> None:
    assert load_config(None, LEAST | {"data": word}).data == data


def test_config_classes_and_shard_are_read_from_text() -> None:
    config = load_config(None, LEAST | {"classes": "no=healthy, yes=tumour", "shard": "3/4"})

    assert (config.classes, config.shard) == ({"no": "healthy", "yes": "tumour"}, (3, 4))


@pytest.mark.parametrize(
    ("report", "names", "shown"),
    [
        (None, None, "all"),
        ("all", None, "all"),
        ("none", frozenset(), "none"),
        ("loss, accuracy", frozenset({"loss", "accuracy"}), "loss,accuracy"),
        (["loss"], frozenset({"loss"}), "loss"),
    ],
)
def test_config_report_is_all_none_or_names(report: object, names: frozenset[str] | None, shown: str) -> None:
    config = load_config(None, LEAST | {"report": report})

    assert config.reporting == Reporting(names)
    assert config.shown()["report"] == shown


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"server": None}, "this site has not joined: run `fedclient join` with the coordinator's token first"),
    (
        {"data": None},
        "name your folder of images with --data DIR, or try things out on generated ones with --data phantom",
    ),
    ({"server": "up"}, "--server: 'up' is no address; write HOST:PORT, such as fl.example.org:8443"),
    (
        {"fingerprint": None},
        (
            "this site has not joined: run `fedclient join` with the coordinator's token first, or give the "
            "--identity folder that it made"
        ),
    ),
    (
        {"identity": "here"},
        "a fingerprint or plaintext is for servers that ask for no certificates: leave these off",
    ),
    ({"key": "here"}, "certificate, key and server-ca go together: name all three files, or none"),
    (
        {"fingerprint": "12:34"},
        "--fingerprint: write sha256: and 64 hexadecimal digits, as in the join command that the server prints",
    ),
    ({"plaintext": True}, "give either a fingerprint or plaintext, not both"),
    (
        {"plaintext": True, "fingerprint": None},
        "plaintext is for a server on this machine only; join fl.example.org with `fedclient join`",
    ),
    (
        {"name": "../up"},
        "--name: a name has 1 to 64 characters of a-z A-Z 0-9 . _ - and starts with a letter or digit",
    ),
    ({"shard": "4/4"}, "--shard: 4/4 is none: shards of N are counted from 0 to N - 1"),
    ({"shard": "first"}, "--shard: write I/N, such as 0/4 for the first of four"),
    (
        {"classes": "no"},
        "--classes: write CLASS=FOLDER pairs with commas between, such as no=healthy,yes=tumour (\\, within a name)",
    ),
    ({"max_hours": 0}, "--max-hours: Input should be greater than 0"),
    *(
        ({name: True}, f"--{name.replace('_', '-')}: true and false are for what is on or off, and this is not")
        for name in ("max_rounds", "max_hours", "give_up_after", "data", "report")
    ),
    *(
        ({name: ""}, f"--{name.replace('_', '-')}: is empty; name a file or folder, or leave it off")
        for name in ("data", "out", "state_dir", "identity")
    ),
    ({"max_rounds": -1}, "--max-rounds: Input should be greater than or equal to 0"),
    (
        {"report": "loss,"},
        "--report: write all, none, or names of metrics with commas between them, such as accuracy,val_accuracy",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_config_that_is_wrong_says_what_to_write(change: dict[str, Any], message: str) -> None:
    assert message_of(None, LEAST | change) == message


def test_config_file_with_unknown_key_names_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text("serverr = 'a:1'\n")

    assert "serverr is no setting; known are server, identity," in message_of(file, LEAST)


def test_config_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, malformed = tmp_path / "none.toml", tmp_path / "bad.toml"
    malformed.write_text("server = ")

    assert message_of(missing, {}) == f"cannot read the configuration file {missing}: No such file or directory"
    assert message_of(malformed, {}).startswith(f"{malformed} is not well-formed TOML")


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_config_plaintext_is_fine_on_loopback(host: str) -> None:
    assert load_config(None, {"server": host, "plaintext": True, "data": "phantom"}).plaintext


def test_state_folder_follows_xdg_and_holds_server_and_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert default_state_folder("[::1]:8443", "a") == tmp_path / "fedstream" / "___1__8443" / "a"


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({}, "--identity"),
        ({"server": "127.0.0.1:1", "plaintext": True}, "--state-dir"),
    ],
)
def test_user_without_home_folder_hears_which_folder_to_name(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], option: str
) -> None:
    leave_without_home(monkeypatch)

    expected = f"this user has no home folder to keep things in: name a folder with {option}, or set HOME"
    assert message_of(None, {"data": "phantom", **settings}) == expected
    assert load_config(None, {"data": "phantom", "server": "127.0.0.1:1", "plaintext": True, "state_dir": "here"})


@pytest.mark.parametrize(("host", "name"), [("-x", "x"), ("", "client"), ("é", "client"), ("a" * 80, "a" * 64)])
def test_default_name_of_odd_host_is_acceptable(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)

    assert default_name() == name
