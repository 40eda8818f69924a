"""Federations with the client in C++: over TLS, beside a Python client and through kills. 20 s, once built."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedclient.exit_codes import ExitCode
from fedclient.identity import IdentityFolder, Membership
from fedserver.store.ledger import Entry, ledger
from fedserver.store.reading import StateReader
from fedserver.store.uploads import finished_uploads
from fedstream.plan import Plan
from fedtask.brain_mri_head.task import BrainMriHead
from fedtask.task import SiteOptions, Weights
from tests.support.brain_mri import ignore
from tests.support.cpp import CLIENT, SLOW_CLIENT, build, cpp_client, missing
from tests.support.features import SETTINGS, write_site, write_wide_site
from tests.support.joining import invited
from tests.support.processes import Running, RunningServer, Stage, soon, until
from tests.support.proxy import proxied

_MISSING = missing()

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.numpy_task,
    pytest.mark.timeout(1_500),  # whichever is the first waits for the build
    pytest.mark.skipif(_MISSING != "", reason=_MISSING or "all is there"),
]

TASK = "brain_mri_head"
MIB = 1 << 20
WIDTH = 3 << 19
"""Features of which a kernel takes 6 MiB: more than the window of an upload."""
WIDE = {"backbone": "none", "features": str(WIDTH), "epochs": "1", "patience": "0"}


def entries_of(server: RunningServer) -> list[Entry]:
    reader = StateReader(server.state)
    try:
        return [row.entry() for row in ledger(reader.database)]
    finally:
        reader.close()


def stored_update(server: RunningServer, number: int, client: str) -> tuple[str, Weights]:
    """The model digest and the tensors of a client's update, as the server keeps it."""
    (rank,) = [member.rank for member in entries_of(server)[number - 1].cohort if member.client == client]
    reader = StateReader(server.state)
    try:
        (update,) = [
            one.update for one in finished_uploads(reader.database, reader.updates_folder, number) if one.rank == rank
        ]
        return update.manifest.model_digest().hex, {name: np.array(values) for name, values in update.tensors().items()}
    finally:
        reader.close()


def base_of(server: RunningServer, number: int) -> Weights:
    return load_file(server.state / "models" / f"{entries_of(server)[number - 1].base.model_digest}.safetensors")


def trained_in_python(base: Weights, data: Path, entry: Entry, client: str) -> Weights:
    """What the Python task makes of a client's base, plan and data."""
    (member,) = [one for one in entry.cohort if one.client == client]
    common = entry.plan
    plan = Plan(member.epochs, common.batch_size, common.learning_rate, common.early_stopping_patience, member.seed)
    task = BrainMriHead(SETTINGS)
    task.open_site(SiteOptions(data))
    return task.fine_tune(base, plan, ignore).weights


def test_cpp_client_finishes_a_federation_beside_python_with_what_python_would_train(scene: Stage) -> None:
    data = {name: write_site(scene.folder, seed) for seed, name in enumerate(("python", "cpp"))}
    server = scene.server("--rounds", "2", "--min-clients", "2", task=TASK, **SETTINGS)
    python = scene.client("python", server.listening, "--data", str(data["python"]))
    cpp = cpp_client(scene, "cpp", server.listening, data["cpp"], "--max-epochs", "2")
    assert (python.wait(), cpp.wait(), server.wait()) == (0, 0, 0), cpp.text
    models = [load_file(scene.folder / name / "GLOBAL_MODEL.safetensors") for name in ("python", "cpp")]
    assert models[0].keys() == models[1].keys()
    assert all(np.array_equal(models[0][name], models[1][name]) for name in models[0])
    for number, entry in enumerate(entries_of(server), 1):
        digest, tensors = stored_update(server, number, "cpp")
        said = cpp.said("trained")[number - 1]
        assert (said["model"], said["epochs"]) == (digest, 2)  # the counter-offer's epochs
        expected = trained_in_python(base_of(server, number), data["cpp"], entry, "cpp")
        for name, values in tensors.items():
            # Sums in another order, and another library's tanh: the last bits of float64, then rounded to float32.
            np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=1e-9)


async def test_cpp_client_killed_in_its_upload_sends_the_rest_and_does_not_train_again(scene: Stage) -> None:
    await asyncio.to_thread(build)
    data = write_wide_site(scene.folder, WIDTH, WIDE)
    server = await asyncio.to_thread(scene.server, "--rounds", "1", "--min-clients", "1", task=TASK, **WIDE)
    async with proxied(server.listening) as (proxy, near):
        proxy.cut_after(3 * MIB)
        first = cpp_client(scene, "alpha", near, data)
        await soon("the cut", lambda: proxy.cuts == 1)
        first.process.kill()
        await first.ended()
        second = cpp_client(scene, "alpha", near, data)
        assert (await second.ended(), await server.ended()) == (0, 0), second.text
    kept = second.said("this round is trained already; sending what was kept")
    (trained,) = second.said("trained")  # both processes write to one log
    assert (len(kept), stored_update(server, 1, "alpha")[0]) == (1, trained["model"])
    assert second.said("sending the update")[-1]["committed"] > 0


def joining(scene: Stage, *words: str) -> Running:
    return scene.launch("join", [str(CLIENT), "join", *words])


def test_cpp_client_joins_by_token_takes_part_and_renews_its_certificate(scene: Stage) -> None:
    build()
    # A certificate of so few minutes is due at once: it begins an hour before it is made.
    server = scene.server("--rounds", "1", "--min-clients", "1", "--certificate-days", "0.01", task=TASK, **SETTINGS)
    token = asyncio.run(invited(server.listening.admin_address, "site-c"))
    identity = scene.folder / "identity"
    words = (server.listening.address, "--token", token.encode(), "--identity", str(identity))
    for _ in range(2):  # what was cut off may be done again, and gives the same certificate
        assert joining(scene, *words).wait() == 0
        found = IdentityFolder(identity)
        assert found.membership() == Membership("site-c", server.listening.address)
        assert found.credentials().facts.name == "site-c"  # Python reads what was left, all four files of it
    assert {path.name: path.stat().st_mode & 0o777 for path in identity.iterdir()} == dict.fromkeys(
        ("site.key", "site.crt", "authority.crt", "identity.json"), 0o600
    )
    before = found.credentials().facts
    data = write_site(scene.folder, seed=1)
    command = [str(CLIENT), "run", "--identity", str(identity), "--data", str(data), "--state-dir", "state"]
    client = scene.launch("site-c", command)
    assert (client.wait(), server.wait()) == (0, 0), client.text
    assert "saved runs/site-c/GLOBAL_MODEL.safetensors" in client.text
    after = found.credentials().facts
    assert client.said("certificate renewed")
    assert (after.key_sha256, after.serial != before.serial) == (before.key_sha256, True)


def test_cpp_client_sends_no_token_to_a_server_with_another_certificate(scene: Stage) -> None:
    build()
    server, other = scene.server(task=TASK, **SETTINGS), scene.server(name="other", task=TASK, **SETTINGS)
    token = asyncio.run(invited(server.listening.admin_address, "site-c"))
    assert other.listening.enrolment_address is not None
    words = ("--token", token.encode(), "--enrolment", other.listening.enrolment_address)
    said = joining(scene, *words, "--identity", str(scene.folder / "identity"))
    assert said.wait() == ExitCode.UNTRUSTED
    assert "Nothing was sent to it" in said.text
    assert not (scene.folder / "identity" / "identity.json").exists()


def test_cpp_client_goes_on_training_while_the_server_is_killed(scene: Stage) -> None:
    data = write_site(scene.folder, seed=1)
    options = ["--rounds", "1", "--min-clients", "1"]
    first = scene.server(*options, task=TASK, **SETTINGS)
    client = cpp_client(scene, "alpha", first.listening, data, slow=True)
    until("the training", lambda: client.said("training"))
    first.process.kill()
    first.wait()
    second = scene.server(*options, listen=first.listening.address, task=TASK, **SETTINGS)
    assert (client.wait(), second.wait()) == (0, 0), client.text
    (trained,) = client.said("trained")
    assert stored_update(second, 1, "alpha")[0] == trained["model"]


def test_cpps_own_tests_pass() -> None:
    done = subprocess.run([str(build() / "unit-tests")], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1].partition(", ")[2]) == (0, "0 failures"), done.stdout
    assert SLOW_CLIENT.exists()
