"""Backup and restore: the state of one instant, complete, or nothing at all. 5 s."""

from __future__ import annotations

import asyncio
import io
import json
import stat
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedserver.addresses import chosen
from fedserver.cli import app
from fedserver.commands import gc
from fedserver.store import DamagedFile, State, StateError, StateReader
from fedserver.store import backup as backup_module
from fedserver.store.backup import BackupError, back_up
from fedserver.store.restore import restore
from fedserver.store.updates import UpdateFacts
from fedserver.verification import verify
from fedstream.encodings import Encoded, Encoding, encode
from fedstream.files import TEMPORARY_SUFFIX
from fedstream.manifest import manifest_of
from tests.support.bench import SCHEMA, Bench, image_of
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task

KINDS = ["backup", "backup.tar"]


async def _live(folder: Path) -> None:
    """Two rounds, and a third with one update in and one on its way."""
    async with Bench.running(folder, "ab", min_clients=2, keep_rounds=1) as bench:
        bench.state.identity([])
        await bench.play(1, 2)
        await bench.play(3, 4)
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 5))
        await bench.write(await bench.begin("b", random_weights(SCHEMA, 6)), random_weights(SCHEMA, 6), stop=700)
        image_of(folder, folder.with_name("state"))
        running.cancel()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backup")
    asyncio.run(_live(folder / "live"))
    return folder / "state"


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return image_of(sound, tmp_path / "state")


async def finish(folder: Path, weights: Mapping[str, np.ndarray]) -> str:
    """Go on with the round that was left, of which `b` has committed 700 bytes; returns the digest of its model."""
    async with Bench.running(folder, "ab", min_clients=2, keep_rounds=1) as bench:
        running = await bench.open_round()
        upload_id = bench.part("b").upload_id
        assert bench.desk.status(upload_id).committed_size == 700
        await bench.write(upload_id, weights)
        await bench.desk.finish(upload_id)
        work = await bench.end_round(running)
        assert work.model is not None
        return work.model.digest.hex


def agrees(folder: Path) -> bool:
    reader = StateReader(folder)
    try:
        return verify(reader).agrees
    finally:
        reader.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_restored_state_goes_on_to_the_same_model(folder: Path, tmp_path: Path, kind: str) -> None:
    made = back_up(folder, tmp_path / kind)
    assert restore(tmp_path / kind, tmp_path / "restored") == made
    assert made.has_key
    assert agrees(tmp_path / "restored")
    weights = random_weights(SCHEMA, 6)
    assert await finish(tmp_path / "restored", weights) == await finish(folder, weights)


@pytest.mark.parametrize("is_finished_meanwhile", [False, True])
async def test_upload_that_travels_encoded_goes_on_where_it_was(tmp_path: Path, is_finished_meanwhile: bool) -> None:
    async with Bench.running(tmp_path / "live", "a", update_encoding="int8") as bench:
        running = await bench.open_round()
        base = dict(bench.federation.model.weights())
        weights = {**base, "large": base["large"] + np.float32(0.5)}
        body = encode(Encoding.INT8, np.full_like(base["large"], 0.5))
        facts = UpdateFacts(10, encoded={"large": Encoded(Encoding.INT8, len(body))})
        upload_id = await bench.accept("a")
        upload = (await bench.desk.begin(upload_id, manifest_of(SCHEMA, weights), facts)).upload
        upload.write(0, body if is_finished_meanwhile else body[:100])
        committed = await bench.desk.commit(upload_id, upload)
        if is_finished_meanwhile:  # but not yet recorded, and the encoded body gone
            upload.verify(base)
            upload.seal()
        back_up(tmp_path / "live", tmp_path / "backup")
        running.cancel()
    restore(tmp_path / "backup", tmp_path / "restored")
    async with Bench.running(tmp_path / "restored", "a", update_encoding="int8") as bench:
        running = await bench.open_round()
        assert bench.desk.status(upload_id).committed_size == committed
        upload = (await bench.desk.at_work(upload_id)).upload
        upload.write(committed, body[committed:])
        await bench.desk.commit(upload_id, upload)
        await bench.desk.finish(upload_id)
        work = await bench.end_round(running)
        assert work.model is not None
        assert np.array_equal(work.model.weights()["large"], weights["large"])


@pytest.mark.parametrize("kind", KINDS)
def test_backup_and_what_is_restored_are_for_the_owner_only(folder: Path, tmp_path: Path, kind: str) -> None:
    back_up(folder, tmp_path / kind)
    restore(tmp_path / kind, tmp_path / "restored")
    paths = [tmp_path / kind, tmp_path / "restored"]
    paths += [path for each in list(paths) for path in each.rglob("*")]
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in paths if path.is_file()} == {"0o600"}
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in paths if path.is_dir()} == {"0o700"}
    if kind.endswith(".tar"):
        with tarfile.open(tmp_path / kind) as tar:
            assert {member.mode for member in tar} == {0o600}


async def test_backup_of_a_running_server_holds_one_instant_whatever_goes_on_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While files are copied, the round at work ends and two more follow, each of which would collect what it can."""
    folder = tmp_path / "state"
    weights = random_weights(SCHEMA, 4)
    async with Bench.running(folder, "ab", min_clients=2, keep_rounds=0) as bench:
        await bench.play(1, 2)
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 3))
        upload_id = await bench.begin("b", weights)
        await bench.write(upload_id, weights, stop=700)

        async def go_on() -> None:
            await bench.write(upload_id, weights)
            await bench.desk.finish(upload_id)
            await bench.end_round(running)
            await bench.play(5, 6)
            await bench.play(7, 8)

        meanwhile(monkeypatch, go_on, asyncio.get_running_loop())
        await asyncio.to_thread(back_up, folder, tmp_path / "backup")
        monkeypatch.undo()
        assert bench.federation.history[-1].number == 4
        await bench.play(9, 10)  # collects what the backup had held up
        assert len(list((folder / "models").iterdir())) == 2
        expected = bench.state.models.of_version(2).digest.hex
    restore(tmp_path / "backup", tmp_path / "restored")
    assert agrees(tmp_path / "restored")
    assert await finish(tmp_path / "restored", weights) == expected


def meanwhile(monkeypatch: pytest.MonkeyPatch, go_on: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
    """Let `go_on` happen after the backup has copied its first file."""
    real = backup_module.named_files

    def named_files(*arguments: Any) -> Any:
        for number, found in enumerate(real(*arguments)):
            if number == 1:
                asyncio.run_coroutine_threadsafe(go_on(), loop).result(20)
            yield found

    monkeypatch.setattr(backup_module, "named_files", named_files)


@pytest.mark.parametrize("kind", KINDS)
def test_restored_server_listens_where_init_was_told(tmp_path: Path, kind: str) -> None:
    told = ("--listen", "0.0.0.0:9443", "--advertise", "fl.example.org")
    assert run("init", "--state", str(tmp_path / "state"), *told)[0] == 0
    back_up(tmp_path / "state", tmp_path / kind)
    restore(tmp_path / kind, tmp_path / "restored")
    expected = {"listen": "0.0.0.0:9443", "enrol_listen": "", "advertise": ["fl.example.org"]}
    assert chosen(tmp_path / "restored") == expected


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    back_up(folder, tmp_path / "backup")
    with pytest.raises(BackupError, match="is there already; give a name that is not"):
        back_up(folder, tmp_path / "backup")
    with pytest.raises(BackupError, match="is not empty, and nothing is overwritten"):
        restore(tmp_path / "backup", folder)
    with pytest.raises(BackupError, match="hardly shrinks weights"):
        back_up(folder, tmp_path / "backup.tar.gz")
    with pytest.raises(BackupError, match="is in the state directory, and would be lost with it"):
        back_up(folder, folder / "backups" / "monday")
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "backup", tmp_path / "empty")
    assert agrees(tmp_path / "empty")


def test_folder_that_is_a_file_system_of_its_own_is_filled(folder: Path, tmp_path: Path, small_disk: Path) -> None:
    back_up(folder, tmp_path / "backup")
    (small_disk / "other").touch()
    with pytest.raises(BackupError, match="is not empty, and nothing is overwritten"):
        restore(tmp_path / "backup", small_disk)
    (small_disk / "other").unlink()
    restore(tmp_path / "backup", small_disk)
    restore(tmp_path / "backup", tmp_path / "replaced")
    assert {path.name for path in small_disk.iterdir()} == {path.name for path in (tmp_path / "replaced").iterdir()}
    assert agrees(small_disk)


def test_damaged_file_is_named_and_no_backup_is_left(folder: Path, tmp_path: Path) -> None:
    path = next((folder / "models").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    for kind in KINDS:
        with pytest.raises(DamagedFile, match=f"{path} is damaged: tensor large does not match its digest"):
            back_up(folder, tmp_path / kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_backup_or_restore_has_begun_is_named_and_let_be(folder: Path, tmp_path: Path, kind: str) -> None:
    begun = tmp_path / f"{kind}{TEMPORARY_SUFFIX}"
    begun.mkdir()
    with pytest.raises(BackupError, match=f"{begun} is there: another backup is being made, or one broke off"):
        back_up(folder, tmp_path / kind)
    assert begun.exists()
    begun.rename(tmp_path / f"restored{TEMPORARY_SUFFIX}")
    back_up(folder, tmp_path / kind)
    with pytest.raises(BackupError, match="another restore is at work, or one broke off; remove it first"):
        restore(tmp_path / kind, tmp_path / "restored")
    assert (tmp_path / f"restored{TEMPORARY_SUFFIX}").exists()


@pytest.mark.parametrize("kind", KINDS)
async def test_upload_whose_bytes_are_gone_is_left_out_and_begun_again(folder: Path, tmp_path: Path, kind: str) -> None:
    (part,) = (folder / "updates").glob(f"*{TEMPORARY_SUFFIX}")
    part.unlink()
    back_up(folder, tmp_path / kind)
    restore(tmp_path / kind, tmp_path / "restored")
    async with Bench.running(tmp_path / "restored", "ab", min_clients=2, keep_rounds=1) as bench:
        running = await bench.open_round()
        await bench.send("b", random_weights(SCHEMA, 6))
        assert (await bench.end_round(running)).model is not None


def test_folder_that_is_no_state_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="is no state directory of a server"):
        back_up(tmp_path, tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped model": (lambda at: flip(next((at / "models").iterdir())), r"is damaged: models/\S+ is not what was"),
    "flipped key": (lambda at: flip(at / "server.key"), "is damaged: server.key is not what was backed up"),
    "flipped database": (lambda at: flip(at / "state.db"), "is damaged: state.db is not what was backed up"),
    "missing update": (lambda at: next((at / "updates").iterdir()).unlink(), r"is damaged: updates/\S+ is missing"),
    "no contents": (lambda at: (at / "backup.json").unlink(), "has no backup.json: it is incomplete, or no backup"),
    "contents cut": (lambda at: (at / "backup.json").write_text("{"), "backup.json cannot be read"),
    "other format": (
        lambda at: (at / "backup.json").write_text('{"format": "v9", "files": {}}'),
        "is of format 'v9', this program knows 'fedstream backup v1'",
    ),
    "strange file": (lambda at: (at / "models" / "x.sh").write_text(""), "holds 'models/x.sh', which no backup has"),
}


@pytest.mark.parametrize("kind", HARMS)
def test_damaged_backup_is_refused_and_leaves_nothing(folder: Path, tmp_path: Path, kind: str) -> None:
    harm, words = HARMS[kind]
    back_up(folder, tmp_path / "backup")
    harm(tmp_path / "backup")
    with pytest.raises(BackupError, match=words):
        restore(tmp_path / "backup", tmp_path / "restored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "state"]


def test_backup_whose_files_are_not_those_its_rows_name_is_refused(folder: Path, tmp_path: Path) -> None:
    """The list of contents was mended, so only the database knows better."""
    back_up(folder, tmp_path / "backup")
    contents = json.loads((tmp_path / "backup" / "backup.json").read_text())
    gone = next((tmp_path / "backup" / "models").iterdir())
    gone.unlink()
    del contents["files"][f"models/{gone.name}"]
    (tmp_path / "backup" / "backup.json").write_text(json.dumps(contents))
    with pytest.raises(BackupError, match=f"backup/models/{gone.name} is missing"):
        restore(tmp_path / "backup", tmp_path / "restored")


@pytest.mark.parametrize("name", ["../outside", "/outside", "models/../../outside", "server.json", "models"])
def test_tar_that_would_write_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "hostile.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(BackupError, match="which no backup has"):
        restore(tmp_path / "hostile.tar", tmp_path / "a" / "restored")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "hostile.tar"]


def test_tar_with_a_link_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "hostile.tar", "w") as tar:
        member = tarfile.TarInfo("server.key")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(BackupError, match=r"'server\.key', which is no file"):
        restore(tmp_path / "hostile.tar", tmp_path / "restored")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_commands_say_that_the_private_keys_are_in_it(folder: Path, tmp_path: Path) -> None:
    code, output = run("backup", "--state", str(folder), "--out", str(tmp_path / "b.tar"))
    assert code == 0
    assert "It holds the private keys of the server and of its authority" in output
    code, output = run("restore", str(tmp_path / "b.tar"), "--state", str(tmp_path / "restored"))
    assert code == 0
    assert f"go on with `fedserver run --state {tmp_path / 'restored'}`" in output
    assert "sites that were revoked since are let in again, and tokens that were used since work once more" in output
    assert run("backup", "--state", str(tmp_path / "nowhere"), "--out", str(tmp_path / "c"))[0] == 3


def test_place_that_is_taken_and_file_that_is_no_backup_are_wrong_arguments(folder: Path, tmp_path: Path) -> None:
    backup, text = tmp_path / "backup", tmp_path / "text.tar"
    back_up(folder, backup)
    text.write_text("no tar")
    restored = ("--state", str(tmp_path / "restored"))
    for words in (
        ("backup", "--state", str(folder), "--out", str(backup)),
        ("backup", "--state", str(folder), "--out", str(folder / "backup")),
        ("restore", str(backup), "--state", str(folder)),
        ("restore", str(tmp_path / "nowhere"), *restored),
        ("restore", str(text), *restored),
    ):
        assert run(*words)[0] == 2, words


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that takes no file, not even of root")
def test_backup_that_cannot_be_written_has_failed(folder: Path, tmp_path: Path) -> None:
    back_up(folder, tmp_path / "backup")
    assert run("backup", "--state", str(folder), "--out", "/proc/self/backup")[0] == 1
    assert run("restore", str(tmp_path / "backup"), "--state", "/proc/self/restored")[0] == 1


def test_collection_command_is_refused_while_a_server_runs_and_works_after(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(folder)
    refused = [run("gc", *options, "--state", str(folder)) for options in ([], ["--dry-run"])]
    bench.state.close()
    for code, output in refused:
        assert code == 3
        assert output.endswith("; a running server collects by itself after every round\n")
    (folder / "updates" / "litter.partial").write_bytes(b"x")
    before = sorted(folder.rglob("*.safetensors*"))
    opened: list[Path] = []
    with monkeypatch.context() as watched:
        watched.setattr(gc, "State", opened.append)
        code, dry = run("gc", "--state", str(folder), "--keep-rounds", "0", "--dry-run")
    assert code == 0
    assert sorted(folder.rglob("*.safetensors*")) == before
    assert opened == []
    code, output = run("gc", "--state", str(folder), "--keep-rounds", "0")
    assert code == 0
    assert output == dry.replace("would remove", "removed")
    assert "removed the updates of round 2\n" in output
    assert f"removed {folder / 'updates' / 'litter.partial'}, which nothing refers to\n" in output
    assert not (folder / "updates" / "litter.partial").exists()
    assert agrees(folder)


def test_backup_is_restored_to_the_folder_one_stands_in(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(folder, tmp_path / "b.tar")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("restore", str(tmp_path / "b.tar"), "--state", ".")[0] == 0
    assert agrees(tmp_path / "here")


@pytest.mark.parametrize(
    "words", [("export", "--round"), ("verify", "--round"), ("rounds", "--round"), ("gc", "--keep-rounds")]
)
def test_number_of_a_round_that_no_federation_has_is_refused(folder: Path, words: tuple[str, ...]) -> None:
    for number in ("99999999999999999999", "-1"):
        code, said = run(*words, number, "--state", str(folder))
        assert code == 2
        assert f"Invalid value for '{words[-1]}'" in said


def test_collection_where_no_server_has_said_how_many_rounds_to_keep_asks_for_it(tmp_path: Path) -> None:
    State(tmp_path).close()
    for options in ([], ["--dry-run"]):
        code, said = run("gc", *options, "--state", str(tmp_path))
        assert (code, said.endswith(": give --keep-rounds\n")) == (2, True)
