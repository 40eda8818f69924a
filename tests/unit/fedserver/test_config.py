"""The coordinator's settings: what is refused, and that the message names the setting. A moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedserver.config import ConfigError, PlanSettings, ServerConfig, folder_of, load_config

pytestmark = pytest.mark.numpy_task


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "server.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(path: Path | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, flags)
    return str(caught.value)


def test_settings_without_file_or_flags_are_the_defaults() -> None:
    assert load_config(None, {}) == ServerConfig()
    assert (ServerConfig().listen, ServerConfig().min_clients, ServerConfig().strategy) == (
        "127.0.0.1:8443",
        2,
        "fedavg",
    )


def test_settings_of_a_file_with_flags_over_them(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        name = "Größe"
        rounds = 20
        min_clients = 3
        state = "here/state"
        [plan]
        epochs = 4
        learning_rate = 1e-3
        [task_settings]
        image_size = 96
        augmentation = true
        alpha = 0.35
        name = "x"
        classes = ["no", "yes"]
        [classes]
        no = "healthy"
        """,
    )
    flags = {
        "rounds": 5,
        "min_clients": None,
        "plan": {"epochs": 2, "batch_size": None},
        "task_settings": {"alpha": 1.0},
    }
    config = load_config(path, flags)
    assert config == ServerConfig(
        name="Größe",
        rounds=5,
        min_clients=3,
        state=Path("here/state"),
        plan=PlanSettings(epochs=2, learning_rate=1e-3),
        task_settings={"image_size": "96", "augmentation": "true", "alpha": "1.0", "name": "x", "classes": "no,yes"},
        classes={"no": "healthy"},
    )


@pytest.mark.parametrize("name", ["x" * 200, "Größe 2", "脳腫瘍", "أورام الدماغ", "[/trial]"])
def test_name_of_a_federation_may_be_in_any_language(name: str) -> None:
    assert load_config(None, {"name": name}).name == name


def test_file_is_utf8_whatever_the_machine_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.getpreferredencoding", lambda _=True: "ascii")
    assert load_config(written(tmp_path, 'name = "größe"'), {}).name == "größe"


TEST_IS_HOLDOUT = (
    "settings: test names the holdout: its score would be of examples by which the best round was chosen. "
    "Keep some apart that nothing else looks at, or leave test off"
)

NO_SWITCH = "true and false are for what is on or off, and this is not"
NAME_RULE = (
    "a federation's name has 1 to 200 characters on one line, none of which is invisible "
    "or turns the direction of writing"
)
NO_NAMES = ("", "  ", "x" * 201, "a\nb", "a\u202eb", "a\u200fb", "\x1b[1m")
FILES = ("state", "out", "holdout", "test", "client_ca", "initial_model", "backbone_weights")

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"round": 3}, "round is not a setting (see `fedserver run --help`)"),
    ({"plan": {"epoch": 3}}, "plan.epoch is not a setting (see `fedserver run --help`)"),
    ({"epochs": 3}, "epochs is not a setting (in a file, it stands under [plan])"),
    ({"task_set": []}, "task_set is not a setting (in a file, a task's settings stand under [task_settings])"),
    ({"log_level": "debug"}, "log_level is not a setting (it is an option alone)"),
    ({"rounds": "many"}, "rounds: Input should be a valid integer, unable to parse string as an integer"),
    ({"rounds": 1.5}, "rounds: Input should be a valid integer, got a number with a fractional part"),
    ({"rounds": True}, f"rounds: {NO_SWITCH}"),
    ({"plan": {"learning_rate": True}}, f"plan.learning_rate: {NO_SWITCH}"),
    ({"certificate_days": True}, f"certificate_days: {NO_SWITCH}"),
    ({"holdout": False}, f"holdout: {NO_SWITCH}"),
    *(({name: ""}, f"{name}: is empty; name a file or folder, or leave it off") for name in FILES),
    ({"rounds": 0}, "rounds: Input should be greater than or equal to 1"),
    ({"rounds": 10**12}, "rounds: Input should be less than or equal to 1000000"),
    ({"min_clients": 0}, "min_clients: Input should be greater than or equal to 1"),
    ({"cohort_size": -1}, "cohort_size: Input should be greater than or equal to 0"),
    ({"plan": {"epochs": 0}}, "plan.epochs: Input should be greater than or equal to 1"),
    ({"plan": {"epochs": 2**40}}, "plan.epochs: Input should be less than or equal to 1000000"),
    ({"plan": {"learning_rate": 0}}, "plan.learning_rate: Input should be greater than 0"),
    ({"plan": {"learning_rate": float("inf")}}, "plan.learning_rate: Input should be a finite number"),
    ({"round_timeout_seconds": 0}, "round_timeout_seconds: Input should be greater than 0"),
    ({"round_timeout_seconds": float("inf")}, "round_timeout_seconds: Input should be a finite number"),
    ({"lease_seconds": float("nan")}, "lease_seconds: Input should be a finite number"),
    ({"join_timeout_seconds": 1e300}, "join_timeout_seconds: Input should be less than or equal to 316224000"),
    ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
    ({"seed": 2**32}, "seed: Input should be less than 4294967296"),
    *(({"name": name}, f"name: {NAME_RULE}") for name in NO_NAMES),
    ({"name": 3}, "name: Input should be a valid string"),
    ({"plan": 3}, "plan: Input should be a valid dictionary or instance of PlanSettings"),
    ({"advertise": "fl.example.org"}, "advertise: Input should be a valid list"),
    ({"classes": {"no": 3}}, "classes.no: Input should be a valid string"),
    ({"listen": "8443"}, "listen: '8443' is no address; write HOST:PORT, such as fl.example.org:8443"),
    (
        {"listen": "localhost:http"},
        "listen: 'localhost:http' is no address; write HOST:PORT, such as fl.example.org:8443",
    ),
    (
        {"listen": "::1:8443"},
        "listen: '::1:8443' is no address; write an IPv6 address in brackets, such as [::1]:8443",
    ),
    (
        {"listen": "127.0.0.1:8443", "enrol_listen": "127.0.0.1:8443"},
        "settings: enrol_listen is the same as listen: sites join at a port of its own",
    ),
    ({"enrol_listen": "8444"}, "enrol_listen: '8444' is no address; write HOST:PORT, such as fl.example.org:8443"),
    ({"certificate_days": 0.0007}, "certificate_days: Input should be greater than or equal to 0.01"),
    (
        {"plaintext": True, "open_enrolment": True},
        "settings: plaintext asks for no certificates anyhow: leave open_enrolment off",
    ),
    (
        {"open_enrolment": True, "client_ca": "ca.pem"},
        "settings: client_ca is for servers that ask for certificates: leave plaintext and open_enrolment off",
    ),
    ({"strategy": "fedprox"}, "strategy: unknown strategy 'fedprox'; choose one of fedavg, uniform, rank_decay"),
    (
        {"cohort_size": 2, "min_clients": 3},
        "settings: cohort_size is below min_clients, so that no round could succeed",
    ),
    (
        {"holdout": "a/b", "test": "a/../a/b"},
        TEST_IS_HOLDOUT,
    ),
    (
        {"holdout": "phantom", "test": "phantom"},
        TEST_IS_HOLDOUT,
    ),
    (
        {"reporting_goal": 1, "min_clients": 2},
        "settings: reporting_goal is below min_clients, so that no round could succeed",
    ),
]


@pytest.mark.parametrize(("settings", "problem"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_setting_is_refused_by_its_name(settings: dict[str, Any], problem: str) -> None:
    assert refused(**settings) == f"the configuration is wrong: {problem}"


def test_several_wrong_settings_are_named_at_once() -> None:
    assert refused(rounds=0, seed=-1, nam="x") == (
        "the configuration is wrong: rounds: Input should be greater than or equal to 1; "
        "seed: Input should be greater than or equal to 0; nam is not a setting (see `fedserver run --help`)"
    )


@pytest.mark.parametrize("listen", ["0.0.0.0:8443", "[::]:8443", "192.168.0.7:1", "fl.example.org:8443"])
def test_plaintext_beyond_this_machine_is_refused_with_what_it_gives_up(listen: str) -> None:
    assert refused(plaintext=True, listen=listen) == (
        "the configuration is wrong: settings: plaintext would send weights readable and changeable by anyone on "
        "the way; it is allowed on a loopback address only. Listen on 127.0.0.1, or leave plaintext off"
    )


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:8443", "[::1]:8443"])
def test_plaintext_on_this_machine_is_allowed(listen: str) -> None:
    assert load_config(None, {"plaintext": True, "listen": listen}).plaintext


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rounds = ", "is not TOML: Invalid value"),
        ("rounds = 1\nrounds = 2", "is not TOML: Cannot overwrite a value"),
        ("{}", "is not TOML: Invalid statement"),
        (b"name = '\xff'", "is not TOML: 'utf-8' codec can't decode byte 0xff"),
        (b"\x00\x01", "is not TOML: "),
    ],
)
def test_file_that_is_no_toml_is_refused_by_its_name(text: str | bytes, problem: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    assert refused(path).startswith(f"{path} {problem}")


def test_file_that_cannot_be_read_is_refused_by_its_name(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.toml") == f"cannot read {tmp_path / 'none.toml'}: No such file or directory"
    assert refused(tmp_path) == f"cannot read {tmp_path}: Is a directory"


@pytest.mark.parametrize("key", ["task_settings", "classes", "plan"])
def test_file_with_a_value_where_a_table_belongs_is_refused_also_beside_flags_for_it(key: str, tmp_path: Path) -> None:
    message = refused(written(tmp_path, f"{key} = 3"), **{key: {"epochs": "1"}})
    assert message.startswith(f"the configuration is wrong: {key}: Input should be a valid dictionary")


def test_configuration_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ServerConfig().rounds = 3  # type: ignore[misc]


def test_folder_of_a_data_setting_is_none_for_generated_data() -> None:
    assert [folder_of(value) for value in (None, "phantom", "data/holdout")] == [None, None, Path("data/holdout")]
