"""What a site's operator decides: from flags, from a TOML file, or by default. Flags win over the file."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from fedclient.exit_codes import ExitCode, Stop
from fedclient.identity import IdentityFolder, Membership, default_identity_folder, read_credentials, state_home
from fedclient.reply import SiteLimits
from fedclient.reporting import Reporting
from fedstream import limits
from fedstream.settings import Settings, read_settings
from fedstream.tls import is_loopback, split_address
from fedtask.class_folders import split_pairs

GENERATED_DATA_WORDS = ("phantom", "synthetic")
"""What to give as `data` for the task's generated examples. A folder of that name is given as `./phantom`."""

_FINGERPRINT = re.compile(r"sha256:[0-9a-fA-F]{64}")


def default_name() -> str:
    """The host's name, with what may not stand in a client's name replaced."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")
    return cleaned[:64] or "client"


def parse_classes(value: object) -> object:
    """`no=healthy,yes=tumour` as the mapping from the task's class name to the folder's name here."""
    if not isinstance(value, str):
        return value
    pairs = [pair.strip().partition("=") for pair in split_pairs(value) if pair.strip()]
    if any(not (name and equals and folder) for name, equals, folder in pairs):
        raise ValueError(
            "write CLASS=FOLDER pairs with commas between, such as no=healthy,yes=tumour (\\, within a name)"
        )
    return {name.strip(): folder.strip() for name, _, folder in pairs}


def parse_shard(value: object) -> object:
    """`0/4` as the pair of shard and number of shards."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+)/(\d+)", value.strip())
    if match is None:
        raise ValueError("write I/N, such as 0/4 for the first of four")
    return int(match[1]), int(match[2])


def parse_report(value: object) -> object:
    """`all` as `None`, `none` as no name, and else names with commas between them."""
    if not isinstance(value, str):
        return value
    words = [word.strip() for word in value.split(",")]
    if not all(words):
        raise ValueError("write all, none, or names of metrics with commas between them, such as accuracy,val_accuracy")
    return {"all": None, "none": ()}.get(value.strip(), tuple(words))


def parse_data(value: object) -> object:
    """The words for generated data as `None`."""
    return None if value in GENERATED_DATA_WORDS else value


class ClientConfig(Settings):
    """The settings of one client. Every field is an option of `fedclient run` and a key of its TOML file.

    `data` is `None` for the task's generated examples. `shard` is (i, n): the i-th, counted from 0, of n parts of
    the folder, for trying things out. `max_epochs`, `max_rounds` and `max_examples` 0 and `max_hours` `None` are no
    limit. `report` names the metrics that may leave; `None` is all. `give_up_after` is in seconds without any contact
    to the server; `None` is never. Without `pictures`, the training history is a table alone.
    """

    server: str
    identity: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_ca: Path | None = None
    fingerprint: str | None = None
    plaintext: bool = False
    name: str = Field(default_factory=default_name)
    data: Annotated[Path | None, BeforeValidator(parse_data)]
    classes: Annotated[Mapping[str, str], BeforeValidator(parse_classes)] = Field(default_factory=dict)
    shard: Annotated[tuple[int, int], BeforeValidator(parse_shard)] = (0, 1)
    division: str = "even"
    division_seed: int = Field(default=0, ge=0)
    max_epochs: int = Field(default=0, ge=0)
    max_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_rounds: int = Field(default=0, ge=0)
    max_examples: int = Field(default=0, ge=0)
    report: Annotated[tuple[str, ...] | None, BeforeValidator(parse_report)] = None
    out: Path | None = None
    pictures: bool = True
    state_dir: Path | None = None
    task: str | None = None
    give_up_after: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @field_validator("server")
    @classmethod
    def _is_address(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not limits.is_client_name(value):
            raise ValueError("a name has 1 to 64 characters of a-z A-Z 0-9 . _ - and starts with a letter or digit")
        return value

    @field_validator("fingerprint")
    @classmethod
    def _is_fingerprint(cls, value: str | None) -> str | None:
        if value is not None and not _FINGERPRINT.fullmatch(value):
            raise ValueError("write sha256: and 64 hexadecimal digits, as in the join command that the server prints")
        return value

    @field_validator("shard")
    @classmethod
    def _is_shard(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError(f"{value[0]}/{value[1]} is none: shards of N are counted from 0 to N - 1")
        return value

    @model_validator(mode="after")
    def _has_trust(self) -> Self:
        brought = (self.certificate, self.key, self.server_ca)
        if any(brought) and not all(brought):
            raise ValueError("certificate, key and server-ca go together: name all three files, or none")
        if self.plaintext and self.fingerprint:
            raise ValueError("give either a fingerprint or plaintext, not both")
        if (self.plaintext or self.fingerprint) and (all(brought) or self.identity):
            raise ValueError("a fingerprint or plaintext is for servers that ask for no certificates: leave these off")
        if self.identity and all(brought):
            raise ValueError("give either an identity folder or files of your own, not both")
        host, _ = split_address(self.server)
        if self.plaintext and not is_loopback(host):
            raise ValueError(f"plaintext is for a server on this machine only; join {host} with `fedclient join`")
        if not (self.plaintext or self.fingerprint or self.identity or all(brought)):
            raise ValueError(
                "this site has not joined: run `fedclient join` with the coordinator's token first, or give the "
                "--identity folder that it made"
            )
        return self

    @property
    def out_folder(self) -> Path:
        """Where models and plots for people go."""
        return self.out or Path("runs") / self.name

    @property
    def state_folder(self) -> Path:
        """Where the client keeps what must survive a restart; one process at a time uses it."""
        return self.state_dir or default_state_folder(self.server, self.name)

    @property
    def cache_folder(self) -> Path:
        """Where the task may keep what it computes of the site's data."""
        return self.state_folder / "cache"

    @property
    def site_limits(self) -> SiteLimits:
        """What the site allows."""
        seconds = None if self.max_hours is None else self.max_hours * 3600
        return SiteLimits(self.max_epochs, seconds, self.max_rounds)

    @property
    def reporting(self) -> Reporting:
        """What the site lets be told of its training."""
        return Reporting(None if self.report is None else frozenset(self.report))

    def shown(self) -> dict[str, object]:
        """The effective settings, for the log."""
        shown = self.model_dump(mode="json", exclude_none=True)
        shown["data"] = "generated" if self.data is None else str(self.data)
        shown["shard"] = f"{self.shard[0]}/{self.shard[1]}"
        shown["report"] = "all" if self.report is None else ",".join(self.report) or "none"
        return shown | {"out": str(self.out_folder), "state_dir": str(self.state_folder)}


def default_state_folder(server: str, name: str) -> Path:
    """`~/.local/state/fedstream/HOST_PORT/NAME`, or below `XDG_STATE_HOME` where that is set.

    Args:
        server: as it was joined; where nothing was joined, as it is dialled.
        name: of the site.

    Raises:
        Stop: with `BAD_CONFIGURATION`, this user has no home folder.
    """
    return state_home("--state-dir") / "fedstream" / re.sub(r"[^A-Za-z0-9.-]", "_", server) / name


def load_config(
    file: Path | None, flags: Mapping[str, Any], without_server: Mapping[str, Any] | None = None
) -> ClientConfig:
    """The settings from a TOML file, if one is given, with the flags that are not `None` over it.

    Args:
        file: the TOML file.
        flags: options by the names of their settings.
        without_server: settings that are used where neither names a server.

    Raises:
        Stop: with `BAD_CONFIGURATION`; the message names each wrong option and what it should be.
    """
    given = {**_read_toml(file), **{key: value for key, value in flags.items() if value is not None}}
    given = _with_identity(given)
    if without_server is not None and "server" not in given:
        given = {**given, **without_server}
    try:
        config = ClientConfig.model_validate(given)
    except ValidationError as error:
        raise Stop(ExitCode.BAD_CONFIGURATION, _explain(error)) from error
    _ = config.state_folder  # where this user has no home, it is said before anything is begun
    return config


def _with_identity(given: dict[str, Any]) -> dict[str, Any]:
    """What an identity says of server and name, under what the operator says."""
    if given.get("plaintext") or given.get("fingerprint"):
        return given
    if given.get("certificate") and given.get("key") and given.get("server_ca"):
        files = [Path(str(given[name])) for name in ("key", "certificate", "server_ca")]
        return {"name": read_credentials(*files).facts.name, **given}
    if given.get("identity") == "":  # refused by its name later on
        return given
    folder = Path(str(given.get("identity") or default_identity_folder()))
    membership = IdentityFolder(folder).membership()
    if membership is None:
        if "identity" in given:
            raise Stop(ExitCode.BAD_CONFIGURATION, f"no site has joined with {folder}: run `fedclient join` first")
        return given
    if given.get("name", membership.name) != membership.name:
        message = (
            f"--name: {folder} is the identity of {membership.name}; leave the name off, or give another --identity"
        )
        raise Stop(ExitCode.BAD_CONFIGURATION, message)
    known = {"server": membership.server, "name": membership.name}
    if "state_dir" not in given:
        known["state_dir"] = str(_state_folder(membership, str(given.get("server") or membership.server)))
    return {**known, **given, "identity": folder}


def _state_folder(joined: Membership, server: str) -> Path:
    """That of the server that was joined, whatever address it is dialled at now.

    Earlier versions named it after that address: where there is such a folder, the site goes on with what it holds.
    """
    former = default_state_folder(server, joined.name)
    return former if os.access(former, os.F_OK) else default_state_folder(joined.server, joined.name)


def _read_toml(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return read_settings(file)
    except OSError as error:
        message = f"cannot read the configuration file {file}: {error.strerror}"
        raise Stop(ExitCode.BAD_CONFIGURATION, message) from error
    except ValueError as error:
        raise Stop(ExitCode.BAD_CONFIGURATION, f"{file} is not well-formed TOML: {error}") from error


_MISSING = {
    "server": "this site has not joined: run `fedclient join` with the coordinator's token first",
    "data": "name your folder of images with --data DIR, or try things out on generated ones with --data phantom",
}


def _explain(error: ValidationError) -> str:
    lines: list[str] = []
    for problem in error.errors():
        field = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "missing":
            lines.append(_MISSING.get(field, f"--{field} is missing"))
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{field} is no setting; known are {', '.join(ClientConfig.model_fields)}")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            lines.append(f"--{field.replace('_', '-')}: {said}" if field else said)
    return "\n".join(lines)
