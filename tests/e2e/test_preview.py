"""`fedclient preview` beside a real server, and without one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.processes import Said, Stage

pytestmark = pytest.mark.e2e

SITE = ["--name", "site", "--data", "phantom", "--max-epochs", "2", "--max-examples", "40", "--report", "loss"]


def preview(scene: Stage, *options: str) -> Said:
    return scene.command("fedclient", "preview", *SITE, "--state-dir", str(scene.folder / "site"), *options)


def hello(said: Said) -> dict[str, Any]:
    [found] = [one["fields"] for one in said.json["messages"] if one["kind"] == "hello"]
    return dict(found)


def test_preview_asks_the_server_what_is_learned_and_joins_nothing(scene: Stage) -> None:
    server = scene.server("--name", "trial", open_enrolment=True, tensors=3)
    trust = ["--server", server.listening.address, "--fingerprint", str(server.listening.fingerprint)]
    online, text = preview(scene, *trust, "--json"), preview(scene, *trust)
    offline = preview(scene, "--task", "linear", "--task-set", "tensors=3", "--json")

    assert (online.status, online.err, text.status, offline.status) == (0, "", 0, 0)
    assert hello(online) == hello(offline)
    assert (hello(online)["client_name"], hello(online)["num_examples"]) == ("site", "40")
    assert (online.json["reply"], online.json["metrics"]) == ("counter_offer", "only loss")
    assert len(online.json["tensors"]) == 5
    assert "to learn linear in 'trial'." in text.out.splitlines()[0]
    assert server.until("nobody to have joined", lambda look: look.clients == {})


def test_preview_of_a_site_whose_server_is_not_there_takes_the_task_that_is_named(scene: Stage) -> None:
    named = ("--task", "linear", "--task-set", "tensors=3", "--json")
    without = preview(scene, *named)
    unreachable = preview(scene, "--server", "127.0.0.1:1", "--plaintext", *named)
    assert (unreachable.status, hello(unreachable)) == (0, hello(without)), unreachable.err
    assert unreachable.json["learns"] == "linear, as named here and not by a server"


def test_preview_that_cannot_know_the_task_says_what_to_give(scene: Stage) -> None:
    nameless = preview(scene)
    unreachable = preview(scene, "--server", "127.0.0.1:1", "--plaintext")
    malformed = preview(scene, "--task", "linear", "--task-set", "tensors")

    assert (nameless.status, nameless.err) == (
        2,
        "fedclient: name the server with --server HOST:PORT, or, to ask none, the task with --task\n",
    )
    assert (unreachable.status, unreachable.out) == (5, "")
    assert "without the server, name the task with --task, and its settings with --task-set" in unreachable.err
    assert (malformed.status, malformed.err) == (
        2,
        "fedclient: --task-set takes NAME=VALUE, such as alpha=0.35, not 'tensors'\n",
    )
