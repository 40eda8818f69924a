"""What a coordinator can set: one flat file in TOML, flags over it, defaults under it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from fedserver.aggregation import strategy_named
from fedstream.encodings import Encoding
from fedstream.errors import FedstreamError
from fedstream.settings import Settings, read_settings, require_named
from fedstream.tls import ascii_host, is_loopback, split_address

GENERATED = "phantom"
"""Given instead of a folder: use the task's generated data."""


_MOST = 1_000_000
_LONGEST_SECONDS = 10 * 366 * 86_400.0
"""Bounds that nobody needs to exceed, and below which every sum fits its field on the wire."""

_LONGEST_NAME = 200
"""Characters of a federation's name, which stands in logs, tables and the report of every site."""

Count = Annotated[int, Field(ge=0, le=_MOST)]
PositiveCount = Annotated[int, Field(ge=1, le=_MOST)]
Span = Annotated[float, Field(ge=0, le=_LONGEST_SECONDS)]
PositiveSpan = Annotated[float, Field(gt=0, le=_LONGEST_SECONDS)]


class ConfigError(FedstreamError):
    """A setting is unknown, malformed or does not go with another. The message names it."""


class PlanSettings(Settings):
    """Hyper-parameters offered to clients; what is left out is the task's default."""

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: PositiveCount | None = None
    batch_size: PositiveCount | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    early_stopping_patience: Count | None = None


class ServerConfig(Settings):
    """Everything `fedserver run` can be told. Spans in seconds. Without `pictures`, the report has its tables alone."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str = "federation"
    listen: str = "127.0.0.1:8443"
    advertise: list[str] = Field(default_factory=list)
    enrol_listen: str = ""
    metrics_listen: str = ""
    plaintext: bool = False
    open_enrolment: bool = False
    client_ca: Path | None = None
    # Of a shorter one, a site that looks every few minutes could miss the end. 0.01 days are a quarter of an hour.
    certificate_days: Annotated[float, Field(ge=0.01, le=3_650)] = 90.0
    task: str = "brain_mri"
    task_settings: dict[str, str] = Field(default_factory=dict)
    plan: PlanSettings = PlanSettings()
    rounds: PositiveCount = 10
    min_clients: PositiveCount = 2
    cohort_size: Count = 0
    reporting_goal: Count = 0
    round_timeout_seconds: PositiveSpan = 3600.0
    longest_round_seconds: Span = 0.0
    lease_seconds: PositiveSpan = 60.0
    join_timeout_seconds: PositiveSpan = 86_400.0
    retry_delay_seconds: Span = 5.0
    keep_rounds: Count = 10
    min_free_bytes: Annotated[int, Field(ge=0, lt=1 << 60)] = 256 << 20
    max_connections: PositiveCount = 4000
    max_streams_per_connection: PositiveCount = 16
    max_examples: PositiveCount | None = None
    max_resent_bytes: Annotated[int, Field(ge=0, lt=1 << 60)] = 1 << 30
    handshake_timeout_seconds: PositiveSpan = 20.0
    message_timeout_seconds: PositiveSpan = 30.0
    strategy: str = "fedavg"
    update_encoding: Encoding = Encoding.RAW
    early_stopping_rounds: Count = 0
    holdout: str | None = None
    test: str | None = None
    classes: dict[str, str] = Field(default_factory=dict)
    initial_model: Path | None = None
    backbone_weights: str | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    state: Path = Path("runs/server/state")
    out: Path = Path("runs/server")
    pictures: bool = True

    @field_validator("name")
    @classmethod
    def _name_can_be_shown(cls, value: str) -> str:
        if not (value.strip() and len(value) <= _LONGEST_NAME and value.isprintable()):
            raise ValueError(
                f"a federation's name has 1 to {_LONGEST_NAME} characters on one line, none of which is invisible "
                "or turns the direction of writing"
            )
        return value

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("enrol_listen", "metrics_listen")
    @classmethod
    def _other_listen_is_an_address(cls, value: str) -> str:
        if value:
            split_address(value)
        return value

    @field_validator("advertise")
    @classmethod
    def _advertised_as_in_dns(cls, value: list[str]) -> list[str]:
        return [ascii_host(name) for name in value]

    @field_validator("holdout", "test", "backbone_weights", mode="before")
    @classmethod
    def _words_for_data_are_none_or_name_it(cls, value: Any) -> Any:
        require_named(value)
        return value

    @field_validator("strategy")
    @classmethod
    def _strategy_is_known(cls, value: str) -> str:
        strategy_named(value)
        return value

    @field_validator("task_settings", mode="before")
    @classmethod
    def _settings_are_text(cls, value: Any) -> Any:
        return {key: _as_text(item) for key, item in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fields_go_together(self) -> ServerConfig:
        if self.plaintext and not is_loopback(split_address(self.listen)[0]):
            raise ValueError(
                "plaintext would send weights readable and changeable by anyone on the way; it is allowed on a "
                "loopback address only. Listen on 127.0.0.1, or leave plaintext off"
            )
        if (self.plaintext or self.open_enrolment) and self.client_ca is not None:
            raise ValueError(
                "client_ca is for servers that ask for certificates: leave plaintext and open_enrolment off"
            )
        if self.plaintext and self.open_enrolment:
            raise ValueError("plaintext asks for no certificates anyhow: leave open_enrolment off")
        if self.enrol_listen and self.enrol_listen == self.listen and not self.listen.endswith(":0"):
            raise ValueError("enrol_listen is the same as listen: sites join at a port of its own")
        if self.test is not None and _is_same_data(self.test, self.holdout):
            raise ValueError(
                "test names the holdout: its score would be of examples by which the best round was chosen. Keep some "
                "apart that nothing else looks at, or leave test off"
            )
        if self.cohort_size and self.cohort_size < self.min_clients:
            raise ValueError("cohort_size is below min_clients, so that no round could succeed")
        if self.reporting_goal and self.reporting_goal < self.min_clients:
            raise ValueError("reporting_goal is below min_clients, so that no round could succeed")
        return self


def _is_same_data(one: str, other: str | None) -> bool:
    if one == GENERATED or other in (None, GENERATED):
        return one == other
    return Path(one).resolve() == Path(other).resolve()


def _as_text(value: Any) -> str:
    """As on a command line: `true`, `3`, and `no,yes` for a list."""
    if isinstance(value, list):
        return ",".join(map(_as_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def load_config(
    path: Path | None, flags: Mapping[str, Any], chosen: Callable[[Path], Mapping[str, Any]] = lambda _state: {}
) -> ServerConfig:
    """The configuration: the file's settings, if one is given, with those of `flags` that are not `None` over them.

    Args:
        path: of the file.
        flags: options.
        chosen: the defaults that a state directory has of its own.

    Raises:
        ConfigError: a setting is wrong; the message names each one, and what it should be.
    """
    settings = _read_toml(path) if path is not None else {}
    for key, value in flags.items():
        known = settings.get(key, {})
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            settings[key] = {**known, **{name: given for name, given in value.items() if given is not None}}
        elif value is not None and not isinstance(value, Mapping):
            settings[key] = value
    state = settings.get("state", ServerConfig.model_fields["state"].default)
    if isinstance(state, str | Path):
        settings = {**chosen(Path(state)), **settings}
    try:
        return ServerConfig.model_validate(settings)
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors())
        raise ConfigError(f"the configuration is wrong: {problems}") from error


def _problem(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "settings"
    if item["type"] == "extra_forbidden":
        return f"{where} is not a setting ({_PLACES.get(where, 'see `fedserver run --help`')})"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}"


_PLACES = dict.fromkeys(PlanSettings.model_fields, "in a file, it stands under [plan]") | {
    "task_set": "in a file, a task's settings stand under [task_settings]",
    "log_json": "it is an option alone",
    "log_level": "it is an option alone",
}
"""Where options of `fedserver run` stand in a file that are no keys at its top."""


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return read_settings(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def folder_of(value: str | None) -> Path | None:
    """The folder that a data setting names; `None` for generated data."""
    return None if value is None or value == GENERATED else Path(value)
