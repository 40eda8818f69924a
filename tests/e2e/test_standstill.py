"""A server that stands still for longer than a lease, as one whose machine was paused. 30 s."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from fedstream.v1 import negotiation_pb2
from tests.support.processes import Look, stage

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(180)]

LEASE_SECONDS = 6
STANDSTILL_SECONDS = 13.0


def all_train(look: Look) -> bool:
    return len(look.parts) == 2 and all(part.phase == negotiation_pb2.PHASE_TRAINING for part in look.parts.values())


def test_server_that_stood_still_takes_what_its_sites_have_trained_meanwhile(tmp_path: Path) -> None:
    names = ("site_0", "site_1")
    with stage(tmp_path) as scene:
        rules = ["--rounds", "1", "--min-clients", "2", "--lease-seconds", str(LEASE_SECONDS)]
        server = scene.server(*rules, seconds=2, epochs=2)
        sites = [scene.client(name, server.listening, shard=f"{number}/2") for number, name in enumerate(names)]
        server.until("both sites to train", all_train)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(STANDSTILL_SECONDS)  # each has trained, and its lease is over
        server.process.send_signal(signal.SIGCONT)
        assert (server.wait(), *(site.wait() for site in sites)) == (0, 0, 0)
        summary = json.loads((server.out / "report" / "summary.json").read_text())
    (only,) = summary["details"]["rounds"]
    assert {one["client_name"]: one["outcome"] for one in only["contributions"]} == dict.fromkeys(names, "completed")
    assert "the server stood still" in server.text
