"""`fedclient doctor` and `fedserver doctor` beside real servers with TLS, and beside what takes their place."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedserver.addresses import lasting_port
from fedserver.store.database import MIGRATIONS
from fedstream.certificates import make_key
from fedstream.limits import PROTOCOL_VERSION
from tests.support.joining import joined
from tests.support.processes import RunningServer, Said, Stage, until
from tests.support.sites import OWN_TASK, write_task

pytestmark = pytest.mark.e2e

FINGERPRINT = "sha256:" + "0" * 64
OF_THE_MACHINE = {"memory": "(any)", "proxy": "(any)"}
"""Checks whose outcome is the test machine's affair."""
SMALL = {"alpha": "0.35", "image_size": "64", "phantom_images": "16"}


def trusting(server: RunningServer) -> list[str]:
    return ["--server", server.listening.address, "--fingerprint", str(server.listening.fingerprint)]


def doctor(scene: Stage, *options: str, data: str = "phantom") -> Said:
    folders = ["--out", str(scene.folder / "out"), "--state-dir", str(scene.folder / "site")]
    return scene.command("fedclient", "doctor", "--json", "--data", data, *folders, *options)


def server_doctor(scene: Stage, *options: str) -> Said:
    folders = ["--out", str(scene.folder / "doctor")]
    return scene.command("fedserver", "doctor", "--json", "--task", "linear", *folders, *options)


def by_name(said: Said) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in said.json["checks"]}


def verdicts(said: Said) -> dict[str, str]:
    return {name: check["verdict"] for name, check in by_name(said).items()}


@contextmanager
def talking(answer: bytes) -> Iterator[str]:
    """Something at a port that says `answer` to whoever comes, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_client_doctor_of_a_healthy_site_fails_nothing_and_joins_nothing(scene: Stage) -> None:
    server = scene.server("--min-clients", "2", open_enrolment=True)
    server.until("the model to be there", lambda look: "for" in look.state.reason)
    said = doctor(scene, *trusting(server), "--model")

    assert (said.status, said.err, said.json["ok"]) == (0, "", True)
    mixed = verdicts(said) | OF_THE_MACHINE
    assert {name: verdict for name, verdict in mixed.items() if verdict != "ok"} == {
        "data": "warning",
        **OF_THE_MACHINE,
    }
    found = by_name(said)
    assert str(server.listening.fingerprint) in found["trust"]["found"]
    assert found["protocol"]["found"].startswith(f"version {PROTOCOL_VERSION};")
    assert found["model"]["found"].startswith("2 tensors")
    server.until("nobody to have joined", lambda look: look.clients == {})
    assert not (scene.folder / "site").exists()
    assert not (scene.folder / "out").exists()


async def test_client_doctor_of_a_site_that_joined_needs_to_be_told_nothing_else(scene: Stage) -> None:
    server = scene.server("--min-clients", "2")
    assert server.listening.enrolment_address is not None
    folder = await joined(server.listening.admin_address, server.listening.enrolment_address, "site-a")
    identity = ["--identity", str(folder.folder)]
    said = doctor(scene, *identity)
    assert scene.command("fedserver", "revoke", "site-a", "--state", str(server.state)).status == 0
    revoked = doctor(scene, *identity)
    (folder.folder / "site.key").write_bytes(make_key())
    foreign = doctor(scene, *identity)

    assert (said.status, said.err) == (0, ""), said.out
    assert by_name(said)["site certificate"]["found"].startswith("site-a: valid until ")
    assert [verdicts(said)[name] for name in ("protocol", "admission")] == ["ok", "ok"]
    assert (revoked.status, verdicts(revoked)["protocol"], verdicts(revoked)["admission"]) == (6, "ok", "failed")
    assert "revoked" in by_name(revoked)["admission"]["found"]
    assert (foreign.status, verdicts(foreign)["site certificate"], verdicts(foreign)["trust"]) == (
        6,
        "failed",
        "skipped",
    )
    assert "is not the certificate of the key" in by_name(foreign)["site certificate"]["found"]
    # One that can show its certificate leaves no line; that without the key shows none.
    audit = server.state / "audit.jsonl"
    assert until("the line of the third", lambda: audit.read_text().count("handshake refused")) == 1


def test_client_doctor_of_another_server_than_was_named_fails_and_asks_it_nothing(scene: Stage) -> None:
    server = scene.server()
    said = doctor(scene, "--server", server.listening.address, "--fingerprint", FINGERPRINT)

    assert said.status == 6
    assert verdicts(said) | OF_THE_MACHINE == {
        "name resolution": "ok",
        "TCP connection": "ok",
        "TLS": "ok",
        "site certificate": "ok",
        "trust": "failed",
        "certificate name": "ok",
        "certificate dates": "ok",
        "clock": "ok",
        **dict.fromkeys(["protocol", "admission", "task", "classes", "model", "class folders", "data"], "skipped"),
        "state folder": "ok",
        "out folder": "ok",
        **OF_THE_MACHINE,
    }
    assert "it is another server, or somebody is in between" in by_name(said)["trust"]["found"]


def test_client_doctor_without_a_server_says_which_step_fails(scene: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"127.0.0.1:{listener.getsockname()[1]}"
    refused = doctor(scene, "--server", closed, "--fingerprint", FINGERPRINT)
    unknown = doctor(scene, "--server", "no-such-host.invalid:8443", "--fingerprint", FINGERPRINT)
    with talking(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        plain = doctor(scene, "--server", address, "--fingerprint", FINGERPRINT)

    assert [said.status for said in (refused, unknown, plain)] == [5, 5, 5]
    assert by_name(refused)["TCP connection"]["found"] == f"{closed} cannot be reached (Connection refused)"
    assert verdicts(refused)["TLS"] == "skipped"
    assert by_name(unknown)["name resolution"]["found"].startswith("no-such-host.invalid has no address")
    assert by_name(plain)["TLS"]["found"].startswith(f"{address} does not speak TLS")


def test_client_doctor_in_plaintext_has_no_checks_of_tls(scene: Stage) -> None:
    server = scene.server("--plaintext")
    said = doctor(scene, "--server", server.listening.address, "--plaintext")

    assert said.status == 0
    assert not {"TLS", "trust", "certificate name", "certificate dates"} & verdicts(said).keys()
    assert verdicts(said)["protocol"] == "ok"


def test_client_doctor_counts_the_images_and_the_files_that_cannot_be_used(scene: Stage) -> None:
    settings = [word for key, value in SMALL.items() for word in ("--task-set", f"{key}={value}")]
    server = scene.server("--backbone-weights", "random", *settings, task="brain_mri", open_enrolment=True)
    scans = scene.folder / "scans"
    write_scans(scans / "train" / "healthy", 3)
    write_scans(scans / "train" / "yes", 4)
    (scans / "train" / "yes" / "notes.png").write_text("no image")
    unmapped = doctor(scene, *trusting(server), data=str(scans))
    mapped = doctor(scene, *trusting(server), "--classes", "no=healthy", data=str(scans))
    nowhere = doctor(scene, *trusting(server), data=str(scene.folder / "none"))

    assert by_name(unmapped)["class folders"]["verdict"] == "warning"
    missing, unknown = by_name(unmapped)["class folders"]["notes"]
    assert "has no no/; if it has another name here, write --classes" in missing
    assert "healthy/, which no class of the task is mapped to" in unknown
    assert (mapped.status, by_name(mapped)["class folders"]["verdict"]) == (0, "ok")
    assert "1 unusable file (1 not an image)" in by_name(mapped)["data"]["found"]
    assert by_name(mapped)["data"]["verdict"] == "warning"
    assert (nowhere.status, verdicts(nowhere)["class folders"], verdicts(nowhere)["data"]) == (3, "failed", "skipped")


def write_scans(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.linear_gradient("L").rotate(17 * number).save(folder / f"{number}.png")


def test_client_doctor_of_a_task_that_only_the_server_names_says_how_to_allow_it(scene: Stage) -> None:
    checkout = Path(__file__).resolve().parents[2]
    server = scene.server(task="tests.support.tasks:Shapes", python_path=checkout, open_enrolment=True)
    said = doctor(scene, *trusting(server))

    assert (said.status, verdicts(said)["task"]) == (4, "failed")
    assert "add --task tests.support.tasks:Shapes" in by_name(said)["task"]["advice"]


def test_client_doctor_of_another_version_of_the_task_fails_by_its_model(
    scene: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, mine = write_task(scene.folder / "theirs"), write_task(scene.folder / "mine", tensors="1")
    server = scene.server("--min-clients", "2", task=OWN_TASK, python_path=theirs, open_enrolment=True)
    server.until("the model to be there", lambda look: "for" in look.state.reason)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(mine), os.environ.get("PYTHONPATH", "")]))
    said = doctor(scene, *trusting(server), "--task", OWN_TASK, "--model")

    assert (said.status, verdicts(said)["classes"], verdicts(said)["model"]) == (4, "ok", "failed")
    assert by_name(said)["model"]["found"] == "the model built here has other tensors than the federation's"


def test_client_doctor_in_lines_says_verdict_name_and_advice(scene: Stage) -> None:
    said = scene.command("fedclient", "doctor", "--server", "127.0.0.1:1", "--plaintext", "--data", "phantom")

    lines = said.out.splitlines()
    assert lines[0] == "ok       name resolution: 127.0.0.1 is 127.0.0.1"
    assert lines[2].startswith("failed   TCP connection: 127.0.0.1:1 cannot be reached (Connection refused). Check ")


def test_server_doctor_before_the_first_start_fails_nothing_and_leaves_nothing(scene: Stage) -> None:
    said = server_doctor(scene, "--listen", "127.0.0.1:0", "--state", str(scene.folder / "new"))

    assert (said.status, said.err) == (0, "")
    assert set(verdicts(said).values()) <= {"ok", "warning"}
    assert list(scene.folder.iterdir()) == []


def test_server_doctor_beside_its_server_and_beside_another_names_who_has_the_port(scene: Stage) -> None:
    server = scene.server("--name", "trial")
    here = ["--listen", server.listening.address]
    own = server_doctor(scene, *here, "--state", str(server.state))
    other = server_doctor(scene, *here, "--state", str(scene.folder / "other"))
    with talking(b"") as address:
        stranger = server_doctor(scene, "--listen", address, "--state", str(scene.folder / "other"))

    assert (own.status, other.status, stranger.status) == (0, 2, 2)
    assert by_name(own)["port"]["found"].endswith(f"(pid {server.process.pid}), which runs")
    assert str(server.listening.fingerprint) in by_name(own)["certificate"]["found"]
    assert by_name(own)["database"]["found"].startswith("opens, version ")
    assert (verdicts(own)["holdout"], verdicts(other)["holdout"]) == ("ok", "warning")
    mark = f"another fedserver, with the certificate {server.listening.fingerprint}"
    assert mark in by_name(other)["port"]["found"]
    assert "a program that is no fedserver" in by_name(stranger)["port"]["found"]


def test_server_doctor_looks_at_the_ports_that_init_was_told_and_at_the_one_for_joining(scene: Stage) -> None:
    state, listen = scene.folder / "new", f"127.0.0.1:{lasting_port()}"
    with talking(b"") as taken:
        scene.command("fedserver", "init", "--state", str(state), "--listen", listen, "--enrol-listen", taken)
        said = server_doctor(scene, "--state", str(state))
    open_to_all = server_doctor(scene, "--state", str(state), "--open-enrolment")

    assert (said.status, verdicts(said)["port"], verdicts(said)["port for joining"]) == (2, "ok", "failed")
    assert by_name(said)["port"]["found"] == f"{listen} is free"
    assert by_name(said)["port for joining"]["found"].startswith(f"{taken} is held by ")
    assert "--enrol-listen" in by_name(said)["port for joining"]["advice"]
    assert (open_to_all.status, "port for joining" in verdicts(open_to_all)) == (0, False)


def test_server_doctor_of_a_state_of_an_earlier_version_warns_that_a_start_converts_it(scene: Stage) -> None:
    state = scene.folder / "new"
    scene.command("fedserver", "init", "--state", str(state))
    with closing(sqlite3.connect(state / "state.db")) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) - 1}")
    said = server_doctor(scene, "--state", str(state), "--listen", "127.0.0.1:0")

    assert (said.status, verdicts(said)["database"], verdicts(said)["certificate"]) == (0, "warning", "ok")
    assert by_name(said)["database"]["found"] == "of an earlier version"


def test_server_doctor_finds_what_is_wrong_with_settings_and_state(scene: Stage) -> None:
    server = scene.server()
    server.end()
    (server.state / "server.key").chmod(0o644)
    loose = server_doctor(scene, "--state", str(server.state), "--listen", "127.0.0.1:0")
    (server.state / "server.key").write_text("another")
    (server.state / "server.key").chmod(0o600)
    changed = server_doctor(scene, "--state", str(server.state), "--listen", "127.0.0.1:0")
    (server.state / "state.db-wal").unlink(missing_ok=True)
    (server.state / "state.db").write_bytes(b"no database" * 1000)
    damaged = server_doctor(scene, "--state", str(server.state), "--listen", "127.0.0.1:0")
    named = ["--listen", "0.0.0.0:0", "--advertise", "no-such-host.invalid", "--holdout", str(scene.folder / "none")]
    wrong = server_doctor(scene, *named, "--state", str(scene.folder / "new"))

    assert (loose.status, by_name(loose)["certificate"]["verdict"]) == (0, "warning")
    assert by_name(loose)["certificate"]["advice"] == f"Run: chmod 600 {server.state}/server.key"
    assert (changed.status, by_name(changed)["certificate"]["verdict"]) == (3, "failed")
    assert (damaged.status, verdicts(damaged)["database"], verdicts(damaged)["certificate"]) == (3, "failed", "skipped")
    assert (wrong.status, verdicts(wrong)["advertised names"], verdicts(wrong)["holdout"]) == (2, "failed", "failed")
