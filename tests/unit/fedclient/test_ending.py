"""That a federation is over: how a client notes it, and when it goes by the note."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fedclient import final_models
from fedclient.calls import Patience
from fedclient.client import Client
from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.display import LogDisplay
from fedclient.ending import Ending, EndingNote
from fedclient.events import FederationOutcome, TaskOnOffer
from fedclient.exit_codes import ExitCode
from fedstream.files import RealFileSystem
from fedstream.manifest import Digest, ModelRef
from fedstream.v1 import negotiation_pb2
from tests.support.crashing_files import CrashingFileSystem, PowerCut, Survival
from tests.support.full_disk import FullDisk
from tests.support.scripted import QUICK, SETTINGS, Script, Scripted, Talk, scripted
from tests.support.sessions import count, last_round, run, stopped, until

pytestmark = pytest.mark.numpy_task

FILES = RealFileSystem()
OUTCOME = FederationOutcome(
    "all 2 rounds done",
    ModelRef(2, Digest(b"l" * 32, 200)),
    ModelRef(1, Digest(b"b" * 32, 200)),
    {"accuracy": 0.75, "auc": None},
)
ENDING = Ending("127.0.0.1:8443 plaintext", TaskOnOffer("federation", "linear", {"tensors": "3"}), OUTCOME)
SAVED = replace(ENDING, saved=(Path("/somewhere/GLOBAL_MODEL.keras"),))
ENDED = "the server has said before that the federation is over"
NOTE = Path("/state/ending.json")


def noted(path: Path) -> Ending | None:
    note = EndingNote(path, FILES)
    note.load()
    return note.ending


def found(content: Mapping[Path, bytes], folder: Path) -> Ending | None:
    """What a note says that is on a disk in memory."""
    for path, data in content.items():
        (folder / path.name).write_bytes(data)
    return noted(folder / NOTE.name)


# --- The note ---


@pytest.mark.parametrize("ending", [ENDING, SAVED, replace(ENDING, saved=())])
def test_note_is_read_as_it_was_written(tmp_path: Path, ending: Ending) -> None:
    EndingNote(tmp_path / "note", FILES).write(ending)
    assert noted(tmp_path / "note") == ending


def test_note_in_a_state_folder_without_one_says_nothing(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert noted(tmp_path / "note") is None
    assert logs == []


def test_note_that_is_forgotten_is_gone_for_the_next_process_too(tmp_path: Path) -> None:
    note = EndingNote(tmp_path / "note", FILES)
    note.write(ENDING)
    note.forget()
    note.forget()
    assert (note.ending, noted(tmp_path / "note")) == (None, None)


def test_note_that_is_damaged_or_torn_is_named_and_ignored(tmp_path: Path) -> None:
    path = tmp_path / "note"
    EndingNote(path, FILES).write(ENDING)
    sound = path.read_bytes()
    digit = sound.replace(b"0.75", b"0.76")
    for damaged in (b"", b"{}", b"[]", sound[:-1], sound[: len(sound) // 2], digit, json.dumps({"a": 1}).encode()):
        path.write_bytes(damaged)
        with capture_logs() as logs:
            assert noted(path) is None
        assert count(logs, "the note that the federation is over cannot be read and is ignored") == 1


@pytest.mark.parametrize("survival", Survival)
@pytest.mark.parametrize("after", [False, True])
def test_note_after_a_power_cut_at_any_step_of_writing_it_is_the_old_or_the_new(
    tmp_path: Path, survival: Survival, after: bool
) -> None:
    whole = CrashingFileSystem({})
    EndingNote(NOTE, whole).write(ENDING)
    before = whole.after_power_cut(Survival.SYNCED_ONLY)
    assert found(before, tmp_path) == ENDING
    for step in range(len(whole.steps)):
        files = CrashingFileSystem(before, step, after=after)
        with pytest.raises(PowerCut):
            EndingNote(NOTE, files).write(SAVED)
        assert found(files.after_power_cut(survival), tmp_path) in (ENDING, SAVED)


def test_note_on_a_full_disk_is_known_to_this_process_only(tmp_path: Path) -> None:
    disk = FullDisk()
    disk.fill()
    note = EndingNote(tmp_path / "note", disk)
    with pytest.raises(OSError, match="No space left"):
        note.write(ENDING)
    assert (note.ending, noted(tmp_path / "note")) == (ENDING, None)


def test_ending_is_not_saved_once_its_files_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "GLOBAL_MODEL.h5"
    ending = replace(ENDING, saved=(path,))
    assert not ending.is_saved
    path.write_bytes(b"model")
    assert ending.is_saved
    assert not ENDING.is_saved


# --- Clients that find one ---


def state_with(folder: Path, ending: Ending) -> None:
    (folder / "state").mkdir()
    EndingNote(folder / "state" / NOTE.name, FILES).write(ending)


def note_in(folder: Path) -> Ending:
    ending = noted(folder / "state" / NOTE.name)
    assert ending is not None
    return ending


def saved_at(folder: Path, server: str, task: TaskOnOffer = ENDING.task) -> Ending:
    """The end of a federation whose model this site has saved."""
    path = folder / "GLOBAL_MODEL.safetensors"
    path.write_bytes(b"model")
    return replace(ENDING, server=f"{server} plaintext", task=task, saved=(path,))


def client_of_nobody(folder: Path, give_up_after: float | None = None) -> Client:
    """A client whose server is not there."""
    config = ClientConfig(server="127.0.0.1:1", plaintext=True, data=None, state_dir=folder / "state", out=folder)
    return Client(config, LogDisplay(), Patience(0.05, 0.1, give_up_after))


async def end_federation(folder: Path) -> tuple[Scripted, str]:
    """A client takes part in a whole federation, whose server then leaves."""
    here: list[Scripted] = []

    script = last_round(here)

    async with scripted(script) as server:
        here.append(server)
        text, _ = await run(server.client(folder))
    return server, text


async def test_client_that_had_finished_and_is_started_again_without_a_server_says_the_same_and_ends(
    tmp_path: Path,
) -> None:
    server, text = await end_federation(tmp_path)

    again, logs = await run(server.client(tmp_path))

    assert again == text
    assert count(logs, ENDED) == 1
    assert count(logs, "data") == 0  # nothing is prepared that is not needed


async def test_client_that_had_finished_and_hears_the_same_end_fetches_nothing_again(tmp_path: Path) -> None:
    first, text = await end_federation(tmp_path)

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await talk.end(first.base)

    async with scripted(script) as server:
        again, _ = await run(server.client(tmp_path))

    assert again == text
    assert server.transfer.calls == []
    assert note_in(tmp_path).server == f"{server.address} plaintext"


async def test_client_without_the_final_model_waits_for_the_server_for_a_while_and_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_models, "FETCH_SECONDS", 3.0)
    state_with(tmp_path, replace(ENDING, server="127.0.0.1:1 plaintext"))
    started = time.monotonic()
    stop = await stopped(client_of_nobody(tmp_path))

    assert stop.code is ExitCode.UNREACHABLE
    assert stop.message.splitlines()[0] == "federation finished: all 2 rounds done"
    assert stop.message.endswith("its final model could not be fetched: ask the coordinator for it")
    assert time.monotonic() - started > 3.0


@pytest.mark.parametrize("version", [0, 2])
def test_last_words_say_whether_any_round_has_made_a_model(version: int) -> None:
    model = ModelRef(version, Digest.of(b"model"))
    words = final_models.describe(FederationOutcome("all 2 rounds done", model, model, {}))
    assert words.startswith("federation finished: all 2 rounds done")
    assert words.endswith("no round has made a model: this one is what the federation began with") is (version == 0)


async def test_client_of_another_server_does_not_go_by_the_note(tmp_path: Path) -> None:
    state_with(tmp_path, saved_at(tmp_path, "127.0.0.1:2"))
    stop = await stopped(client_of_nobody(tmp_path, give_up_after=1.0))

    assert stop.code is ExitCode.UNREACHABLE
    assert stop.message.startswith("no contact to 127.0.0.1:1 ")


def test_server_that_was_set_up_anew_at_the_same_address_is_another_one() -> None:
    def server(fingerprint: str) -> str:
        config = ClientConfig(server="fl.example.org:8443", fingerprint=f"sha256:{fingerprint}", data=None)
        return Connection(config).server

    assert server("ab" * 32) == server("AB" * 32)
    assert server("ab" * 32) != server("cd" * 32)


@pytest.mark.parametrize("federation", ["test", "an earlier one"])
async def test_client_whose_server_goes_on_or_has_another_federation_forgets_the_note(
    tmp_path: Path, federation: str
) -> None:
    here: list[Scripted] = []

    async def goes_on(talk: Talk) -> None:
        await talk.welcome()
        if federation == "test":
            await talk.say(waiting=negotiation_pb2.Waiting(reason="for more clients"))
            await until(lambda: not path.exists())
        assert not path.exists()
        await talk.cut()

    ends = last_round(here)

    async with scripted(goes_on, ends) as server:
        here.append(server)
        path = tmp_path / "state" / NOTE.name
        state_with(tmp_path, saved_at(tmp_path, server.address, TaskOnOffer(federation, "linear", SETTINGS)))
        text, logs = await run(server.client(tmp_path))

    assert count(logs, "update delivered") == 1
    assert text.startswith("federation finished: all rounds done\n")
    assert note_in(tmp_path).saved == (tmp_path / "out" / "GLOBAL_MODEL.safetensors",)


# A disk that is full when the end is heard.


def ends_on_a_full_disk(here: list[Scripted], disk: FullDisk, seconds: float) -> Script:
    """A federation that has no round, and ends while the client's disk is full for so long."""

    async def script(talk: Talk) -> None:
        await talk.welcome()
        disk.fill()
        asyncio.get_running_loop().call_later(seconds, disk.free)
        await talk.end(here[0].base)
        with contextlib.suppress(StopAsyncIteration):  # until the client closes its side
            await talk.hear("nothing")

    return script


async def test_client_whose_disk_is_full_at_the_end_waits_for_space_and_has_the_final_model(tmp_path: Path) -> None:
    disk, here = FullDisk(), list[Scripted]()
    async with scripted(ends_on_a_full_disk(here, disk, 1.0)) as server:
        here.append(server)
        text, logs = await run(Client(server.config(tmp_path), LogDisplay(), QUICK, disk))

    saved = tmp_path / "out" / "GLOBAL_MODEL.safetensors"
    assert text.endswith(f"saved {saved}")
    assert count(logs, "the final model waits for the disk") == 1
    assert note_in(tmp_path).saved == (saved,)


async def test_client_whose_disk_stays_full_at_the_end_names_the_disk_and_does_not_say_that_all_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_models, "FETCH_SECONDS", 3.0)
    disk, here = FullDisk(), list[Scripted]()
    async with scripted(ends_on_a_full_disk(here, disk, 60.0)) as server:
        here.append(server)
        stop = await stopped(Client(server.config(tmp_path), LogDisplay(), QUICK, disk))

    assert stop.code is ExitCode.BAD_CONFIGURATION
    first, second = stop.message.splitlines()
    assert first == "federation finished: all rounds done"
    where = f"{tmp_path / 'state'}: No space left on device; make space there"
    leaves = "The server leaves as soon as its sites have: ask the coordinator for the final model"
    assert second == f"but its final model could not be kept ({where}). {leaves}"


async def test_client_whose_disk_is_full_in_a_round_says_which_folder_and_what_to_do_at_the_site_only(
    tmp_path: Path,
) -> None:
    disk, here, told = FullDisk(), list[Scripted](), list[str]()

    async def script(talk: Talk) -> None:
        await talk.welcome()
        disk.fill()
        await talk.agree(here[0].base)
        told.append((await talk.hear("failure")).reason)
        disk.free()
        await talk.end(here[0].base)

    async with scripted(script) as server:
        here.append(server)
        text, logs = await run(Client(server.config(tmp_path), LogDisplay(), QUICK, disk))

    [failed] = [line for line in logs if line["event"] == "the work on this round failed"]
    words = f"{tmp_path / 'state' / 'updates'}: No space left on device; make space there"
    assert failed["because"] == f"{words}. This site goes on with the next round"
    assert told == ["the site's disk could not be written or read"]
    assert text.endswith(f"saved {tmp_path / 'out' / 'GLOBAL_MODEL.safetensors'}")
