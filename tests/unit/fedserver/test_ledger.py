"""What a round's entry in the ledger says of the settings it was run with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedserver.config import ServerConfig
from fedserver.ledger import configuration_sha256

SETTINGS: dict[str, Any] = {"task": "linear", "rounds": 3}


@pytest.mark.parametrize(
    "of_this_machine",
    [
        {"listen": "127.0.0.1:9999"},
        {"enrol_listen": "127.0.0.1:9999"},
        {"metrics_listen": "127.0.0.1:9999"},
        {"advertise": ["fl.example.org"]},
        {"state": Path("elsewhere")},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_the_machine_are_no_part_of_the_digest(of_this_machine: dict[str, Any]) -> None:
    assert configuration_sha256(ServerConfig(**SETTINGS, **of_this_machine)) == configuration_sha256(
        ServerConfig(**SETTINGS)
    )


def test_settings_of_the_federation_are_part_of_the_digest() -> None:
    assert configuration_sha256(ServerConfig(**{**SETTINGS, "rounds": 4})) != configuration_sha256(
        ServerConfig(**SETTINGS)
    )
