"""`fedserver verify`: a sound directory agrees, and whatever is changed in one is found and named. 10 s."""

from __future__ import annotations

import asyncio
import copy
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedserver.cli import app
from fedserver.store import State, StateReader
from fedserver.store.ledger import canonical_json, hash_of
from fedserver.store.models import ModelStore
from fedserver.store.row_checks import register
from fedserver.verification import Verdict, files, verification, verify
from fedserver.verification.chain import Books, read_pages
from fedstream.files import RealFileSystem
from fedstream.manifest import described
from tests.support.bench import SCHEMA, Bench, image_of
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task

LAST = 4


async def _live(folder: Path) -> None:
    """Four rounds: one whose updates are collected, one without a model, one with a quarantined update, one plain."""
    async with Bench.running(folder, "abcd", min_clients=2, keep_rounds=3, accuracies=[0.5, 0.9, 0.7]) as bench:
        await bench.play(1, 2, 3, 4)
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 5))
        for name in "bcd":
            bench.federation.apply(bench.round.decline(name, bench.part(name).offer_id, "busy", bench.federation.now))
        await bench.end_round(running)
        running = await bench.open_round()
        for name, seed in zip("abcd", (6, 7, 8, 9), strict=True):
            weights = random_weights(SCHEMA, seed)
            scale = 1000 if name == "d" else 1
            await bench.send(name, {key: (values * scale).astype(values.dtype) for key, values in weights.items()})
        await bench.end_round(running)
        await bench.play(10, 11, 12, 13)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verification") / "state"
    asyncio.run(_live(folder))
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return image_of(sound, tmp_path / "state")


def check(folder: Path, number: int | None = None) -> Verdict:
    reader = StateReader(folder)
    try:
        return verify(reader, number)
    finally:
        reader.close()


def differences(folder: Path) -> list[str]:
    verdict = check(folder)
    found = [f"{one.number} {difference}" for one in verdict.rounds for difference in one.differences]
    assert verdict.agrees is not bool(found or verdict.others)
    return found + [str(difference) for difference in verdict.others]


def chain_differences(folder: Path) -> list[str]:
    """The same of the ledger alone, which is quick."""
    reader = StateReader(folder)
    try:
        return [f"{page.number} {one}" for page in read_pages(Books.read(reader.database)) for one in page.differences]
    finally:
        reader.close()


def change(folder: Path, sql: str, *values: Any) -> None:
    with sqlite3.connect(folder / "state.db") as connection:
        register(connection)  # with the checksum of its row: only the ledger can tell
        changed = connection.execute(sql, values).rowcount
    connection.close()
    assert changed == 1


def entry_of(folder: Path, number: int) -> dict[str, Any]:
    with sqlite3.connect(folder / "state.db") as connection:
        (text,) = connection.execute("SELECT entry FROM ledger WHERE number = ?", (number,)).fetchone()
    connection.close()
    fields: dict[str, Any] = json.loads(text)
    return fields


def write_entry(folder: Path, number: int, fields: dict[str, Any], *, rehash: bool) -> None:
    text = canonical_json(fields)
    change(folder, "UPDATE ledger SET entry = ? WHERE number = ?", text, number)
    if rehash:
        change(folder, "UPDATE ledger SET hash = ? WHERE number = ?", hash_of(text), number)


def rechain(folder: Path, change_entry: Callable[[dict[str, Any]], None], number: int) -> None:
    """What somebody does who changes an entry and knows how the chain is made."""
    previous = None
    for each in range(number, LAST + 1):
        fields = entry_of(folder, each)
        if each == number:
            change_entry(fields)
        else:
            fields["previous"] = previous
        write_entry(folder, each, fields, rehash=True)
        previous = hash_of(canonical_json(fields)).hex()


def test_sound_directory_agrees_and_says_how_far_it_was_checked(folder: Path) -> None:
    verdict = check(folder)
    assert [(one.number, one.recomputed, one.checked) for one in verdict.rounds] == [
        (1, False, "chain and model digest only: its updates are no longer kept"),
        (2, False, "chain; it made no model"),
        (3, True, "chain, files, and the aggregate of 3 updates made again"),
        (4, True, "chain, files, and the aggregate of 4 updates made again"),
    ]
    assert verdict.agrees
    assert differences(folder) == []


def test_ledger_says_who_was_kept_aside_and_why(folder: Path) -> None:
    cohort = entry_of(folder, 3)["cohort"]
    assert [(member["client"], member["outcome"], member["update"]["weight"]) for member in cohort] == [
        ("a", "completed", 10.0),
        ("b", "completed", 10.0),
        ("c", "completed", 10.0),
        ("d", "quarantined", None),
    ]
    assert cohort[3]["update"]["admission"] == "quarantined"
    assert cohort[3]["update"]["reason"] == cohort[3]["reason"]
    assert cohort[3]["reason"].startswith("norm: the update moved the model by ")
    assert [member["weight_limit"] for member in cohort] == [20.0] * 4
    assert [member["update"] is None for member in entry_of(folder, 2)["cohort"]] == [False, True, True, True]


def stored_files(folder: Path) -> Iterator[Path]:
    yield from sorted((folder / "models").glob("*"))
    yield from sorted((folder / "updates").glob("*"))


def test_one_flipped_bit_in_any_stored_file_is_found_and_named(folder: Path) -> None:
    generator = np.random.default_rng(0)
    files = list(stored_files(folder))
    assert len(files) == 4 + 9
    for path in files:
        sound = path.read_bytes()
        for place in (0, 9, len(sound) - 1, int(generator.integers(len(sound)))):
            damaged = bytearray(sound)
            damaged[place] ^= 1 << int(generator.integers(8))
            path.write_bytes(damaged)
            found = differences(folder)
            assert any(str(path) in line for line in found), (path, place)
        path.write_bytes(sound)
    assert differences(folder) == []


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "does not match its digest"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "is longer than its manifest says"),
        (lambda path: path.write_bytes(b""), "its header is not the one its manifest makes"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read (Is a directory)"),
    ],
)
def test_missing_cut_or_grown_file_is_named(folder: Path, harm: Callable[[Path], object], problem: str) -> None:
    for path in (next((folder / "models").glob("*")), next((folder / "updates").glob("*"))):
        harm(path)
        assert any(str(path) in line and problem in line for line in differences(folder)), problem


def test_rounds_whose_updates_are_damaged_are_not_made_again_and_say_so(folder: Path) -> None:
    for path in (folder / "updates").glob("*"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert [(one.number, one.recomputed, one.checked) for one in check(folder).rounds] == [
        (1, False, "chain and model digest only: its updates are no longer kept"),
        (2, False, "chain; it made no model, and updates are damaged"),
        (3, False, "chain and model digest only: updates are damaged"),
        (4, False, "chain and model digest only: updates are damaged"),
    ]


async def test_damaged_update_of_the_round_at_work_is_named(folder: Path) -> None:
    async with Bench.running(folder, "ab", min_clients=2) as bench:
        running = await bench.open_round()
        upload_id = bench.part("a").upload_id
        await bench.send("a", random_weights(SCHEMA, 14))
        running.cancel()
    path = folder / "updates" / f"{upload_id}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert differences(folder) == [f"{path}: is damaged: tensor large does not match its digest"]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = False
    for key, item in items:
        found = True
        yield from leaves(item, (*path, key))
    if not found:
        yield path


def changed_at(fields: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(fields)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    value = place[path[-1]]
    if isinstance(value, str) and len(value) == 64:
        place[path[-1]] = value[:-1] + ("0" if value[-1] != "0" else "1")
    elif isinstance(value, bool):
        place[path[-1]] = not value
    elif isinstance(value, int | float):
        place[path[-1]] = value + 1
    else:
        place[path[-1]] = "changed" if isinstance(value, str) else {} if value is None else None
    return changed


def test_changed_entry_is_found_whatever_field_it_is(folder: Path) -> None:
    fields = entry_of(folder, 3)
    for path in leaves(fields):
        write_entry(folder, 3, changed_at(fields, path), rehash=False)
        found = chain_differences(folder)
        assert any(line.startswith("3 entry: it was changed: its sha256 is ") for line in found), path
    write_entry(folder, 3, fields, rehash=False)
    assert differences(folder) == []


def test_changed_entry_with_a_hash_of_its_own_breaks_the_chain(folder: Path) -> None:
    fields = entry_of(folder, 3)
    for path in leaves(fields):
        write_entry(folder, 3, changed_at(fields, path), rehash=True)
        assert any(line.startswith("4 entry.previous: it is ") for line in chain_differences(folder)), path


@pytest.mark.parametrize(
    ("path", "where"),
    [
        (("base", "model_digest"), "3 entry.base: it is "),
        (("aggregate", "model_digest"), "3 entry.aggregate: it is "),
        (("record_sha256",), "3 rounds.record: it was changed"),
        (("round",), "3 entry.round: it is 4, but the entry stands at 3"),
        (("strategy",), "3 entry.strategy: unknown strategy"),
        (
            ("cohort", 1, "update", "weight"),
            "3 entry.cohort[1].update.weight: it is 11.0, but fedavg gives 10.0",
        ),
        (("cohort", 1, "update", "num_examples"), "3 entry.cohort[1].update.num_examples: it is 11, but the stored"),
        (("cohort", 1, "update", "model_digest"), "3 entry.cohort[1].update.model_digest: it is "),
        (("cohort", 3, "update", "admission"), "3 entry: it cannot be read: "),
        (("cohort", 3, "rank"), "3 entry.cohort[4].update: the update of d is missing from the store"),
        (("cohort", 1, "update"), "3 entry.cohort[1].update: there is none, but an admitted one of b is stored"),
    ],
)
def test_entry_changed_along_with_the_whole_chain_contradicts_what_is_stored(
    folder: Path, path: tuple[Any, ...], where: str
) -> None:
    rechain(folder, lambda fields: fields.update(changed_at(fields, path)), 3)
    found = differences(folder)
    assert any(line.startswith(where) for line in found), found
    assert not any("entry.previous" in line for line in found)


def test_aggregate_that_was_replaced_everywhere_is_found_by_making_it_again(folder: Path) -> None:
    """Somebody who can write everything puts another model in the place of the last one, and mends all that says so."""
    reader = StateReader(folder)
    weights = {name: values.copy() for name, values in reader.models().of_version(LAST).weights().items()}
    reader.close()
    weights["large"][5] = np.nextafter(weights["large"][5], np.float32(np.inf))
    writing = Bench(folder)
    model = ModelStore(folder / "models", writing.state.database, RealFileSystem()).add(
        LAST, SCHEMA, described(SCHEMA, weights)
    )
    writing.state.close()
    change(folder, "UPDATE rounds SET model_sha256 = ? WHERE number = ?", model.digest.sha256, LAST)
    rechain(folder, lambda fields: fields["aggregate"].update(model_digest=model.digest.hex), LAST)
    found = differences(folder)
    assert len(found) == 1
    assert found[0].startswith("4 aggregate, tensor large: 1 of 262 values differ, the first at [5]: made again it is ")
    model.path.write_bytes(b"")  # then the recorded digest is what is left to compare with
    digest = model.manifest.entries[-1].digest.hex
    assert f"4 aggregate, tensor large: made again it has not the recorded digest {digest}" in differences(folder)


def test_entry_that_its_own_updates_contradict_cannot_be_made_again(folder: Path) -> None:
    rechain(folder, lambda fields: fields["cohort"][1].update(weight_limit=5.0), 3)
    problem = "the update of rank 1 would weigh 10; 5 is the most it may"
    assert differences(folder) == [f"3 aggregate: it cannot be made again from what the entry says: {problem}"]


def test_update_whose_row_is_gone_without_having_been_collected_is_missed(folder: Path) -> None:
    change(folder, "DELETE FROM uploads WHERE rowid = (SELECT max(rowid) FROM uploads)")
    found = differences(folder)
    assert len(found) == 1
    assert found[0].endswith(" is missing from the store")


def test_entry_or_record_that_was_removed_is_missed(folder: Path) -> None:
    change(folder, "DELETE FROM ledger WHERE number = 2")
    found = differences(folder)
    assert [line for line in found if "entry.previous" not in line] == [
        "3 ledger: the entry before round 3 is missing",
        "ledger: round 2 has no entry",
    ]
    assert any(line.startswith("3 entry.previous") for line in found)
    change(folder, "DELETE FROM rounds WHERE number = 4")
    assert "4 rounds: the round's record is missing" in differences(folder)


def test_row_of_a_round_that_names_another_model_than_its_entry_is_named(folder: Path) -> None:
    model, other = (entry_of(folder, number)["aggregate"]["model_digest"] for number in (4, 3))
    change(folder, "UPDATE rounds SET model_sha256 = ? WHERE number = 4", bytes.fromhex(other))
    assert differences(folder) == [f"4 entry.aggregate: it is {model}, but the round's row has {other}"]
    change(folder, "UPDATE rounds SET model_sha256 = ? WHERE number = 4", bytes.fromhex(model))
    change(folder, "UPDATE versions SET sha256 = ? WHERE version = 4", bytes.fromhex(other))
    assert f"4 entry.aggregate: it is {model}, but the model of version 4 is {other}" in differences(folder)


def test_one_round_is_checked_with_the_whole_chain(folder: Path) -> None:
    assert [(one.number, one.recomputed) for one in check(folder, 4).rounds] == [(4, True)]
    write_entry(folder, 3, changed_at(entry_of(folder, 3), ("reason",)), rehash=False)
    rounds = [(one.number, bool(one.differences), one.recomputed) for one in check(folder, 4).rounds]
    assert rounds == [(3, True, False), (4, False, True)]


@pytest.mark.parametrize("number", [2, 4])
def test_one_round_whose_base_is_damaged_differs(folder: Path, number: int) -> None:
    base = folder / "models" / f"{entry_of(folder, number)['base']['model_digest']}.safetensors"
    base.write_bytes(base.read_bytes()[:-1])
    verdict = check(folder, number)
    assert not verdict.agrees
    (one,) = verdict.rounds
    assert [difference.where for difference in one.differences] == [str(base)]
    assert not one.recomputed


@pytest.mark.parametrize("moment", ["before", "between", "after"])
async def test_what_a_server_collects_meanwhile_is_not_called_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Before the rows of a round's updates are looked at, between that and the look at their files, and after both."""
    async with Bench.running(folder, "abcd", min_clients=2) as bench:
        reader = StateReader(folder)
        module, name = (verification, "updates_of") if moment == "after" else (files, "finished_uploads")
        look = getattr(module, name)

        def looked(*arguments: Any) -> Any:
            if moment == "before":
                bench.state.collect(0, ())
            found = look(*arguments)
            bench.state.collect(0, ())
            return found

        monkeypatch.setattr(module, name, looked)
        verdict = verify(reader)
        reader.close()
    assert verdict.agrees, verdict
    assert not any(one.recomputed for one in verdict.rounds)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_command_says_yes_with_status_0(folder: Path) -> None:
    code, output = run("verify", "--state", str(folder))
    assert code == 0
    assert "round 4 agrees: chain, files, and the aggregate of 4 updates made again\n" in output
    assert "4 rounds checked, 2 of them made again from their updates: everything agrees\n" in output


def test_command_says_before_the_first_round_that_there_is_nothing_to_check(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    state = State(folder)
    assert run("verify", "--state", str(folder)) == (0, "nothing to check yet: no round is over\n")
    state.remember("sha256 of server.key", "another")
    state.close()
    code, output = run("verify", "--state", str(folder))
    assert (code, output) == (1, f"DIFFERS: {folder / 'server.key'}: it is not what it was\nno round is over\n")


def test_command_says_what_differs_with_status_1(folder: Path) -> None:
    path = next((folder / "updates").glob("*"))
    path.unlink()
    code, output = run("verify", "--state", str(folder))
    assert code == 1
    assert f"DIFFERS: {path}: is missing\n" in output
    code, output = run("verify", "--state", str(folder), "--json")
    assert (code, json.loads(output)["agrees"]) == (1, False)


def test_command_refuses_an_unknown_round_with_2_and_an_unusable_directory_with_3(folder: Path, tmp_path: Path) -> None:
    assert run("verify", "--state", str(folder), "--round", "5") == (
        2,
        "fedserver: round 5 is not over, or never was; the ledger has 4 rounds\n",
    )
    code, output = run("verify", "--state", str(tmp_path / "nowhere"))
    assert (code, "is no state directory of a server" in output) == (3, True)
    (folder / "state.db").write_bytes(b"garbage" * 1000)
    code, output = run("verify", "--state", str(folder))
    assert (code, "restore a backup" in output) == (3, True)


def test_command_works_beside_the_lock_of_a_running_server(folder: Path) -> None:
    bench = Bench(folder)
    try:
        assert run("verify", "--state", str(folder))[0] == 0
    finally:
        bench.state.close()
