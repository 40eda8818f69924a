"""Clients in other languages as processes. A language is one entry: a `ForeignClient` in a module of its own here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedclient.identity import AUTHORITY, CERTIFICATE, KEY
from fedserver.server import Listening
from tests.support.joining import joined
from tests.support.processes import Running, Stage

CLIENTS = Path(__file__).resolve().parents[2] / "clients"


@dataclass(frozen=True, slots=True)
class ForeignClient:
    """A client in one language.

    `missing` is why it cannot run here, empty if it can; it builds nothing. `build` makes it ready, and skips the test
    where what it needs cannot be had; it is called before each use, and quick but for the first time. `run`, `slow` and
    `join` are its commands up to their options; `slow` waits `SLOW_HEAD_SECONDS` before it trains, 3 by default, and
    with `SLOW_HEAD_FAILS` fails then. `own_tests` are run in `folder`. `training_error` is how far a weight may be from
    Python's: as far as sums in another order and another library's tanh make it in float64, unless it says more.
    `knows_nohup` is whether its runtime leaves signals ignored that were ignored when it was started.
    """

    language: str
    folder: Path
    missing: Callable[[], str]
    build: Callable[[], None]
    run: Sequence[str]
    slow: Sequence[str]
    own_tests: Sequence[Sequence[str]]
    join: Sequence[str]
    training_error: float = 1e-9
    knows_nohup: bool = True


def marks(client: ForeignClient) -> list[pytest.MarkDecorator]:
    """Of the tests of a client."""
    missing = client.missing()
    return [
        pytest.mark.e2e,
        pytest.mark.numpy_task,
        pytest.mark.timeout(240),
        pytest.mark.skipif(missing != "", reason=missing or "all is there"),
    ]


def _certificates(listening: Listening, name: str) -> list[str]:
    """Options of a site that was invited and has joined, now or before."""
    assert listening.enrolment_address is not None, "sites enrol where there are certificates"
    joining = joined(listening.admin_address, listening.enrolment_address, name)
    with ThreadPoolExecutor(1) as thread:  # the test may have a loop of its own in this one
        folder = thread.submit(asyncio.run, joining).result().folder
    files = {"--certificate": CERTIFICATE, "--key": KEY, "--server-ca": AUTHORITY}
    return [word for option, file in files.items() for word in (option, str(folder / file))]


def command(
    scene: Stage,
    client: ForeignClient,
    name: str,
    listening: Listening,
    data: Path,
    *options: str,
    slow: bool = False,
    state: str = "state",
) -> list[str]:
    """How one is started; what it makes is in the folder of its name, and what it keeps in the folder `state` there."""
    client.build()
    folder = scene.folder / name
    trust = [] if "--fingerprint" in options else _certificates(listening, name)
    words = [*(client.slow if slow else client.run), "--server", listening.address, *trust, "--name", name]
    words += ["--data", str(data), "--out", str(folder), "--state-dir", str(folder / state)]
    return [*words, *options]


def start(scene: Stage, client: ForeignClient, name: str, *where: Any, **how: Any) -> Running:
    """Start one, with all that `command` is told."""
    return scene.launch(name, command(scene, client, name, *where, **how))
