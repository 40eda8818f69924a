"""What `fedserver status` and its like show, of words that sites and folders chose. A moment."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from rich.console import Console, RenderableType

from fedserver.commands import run, status
from fedserver.commands.admin import CALL_SECONDS, administration
from fedserver.commands.offline import show_evaluation
from fedserver.commands.rounds import participation_table
from fedserver.commands.status import picture, show_status
from fedserver.commands.tables import compact_table
from fedserver.config import ServerConfig
from fedserver.server import Listening
from fedserver.store import State
from fedserver.store.members import Site, SiteState, keeping
from fedstream.v1 import admin_pb2
from fedtask.metrics import binary_evaluation
from fedtask.task import Evaluation, SiteSummary

pytestmark = pytest.mark.numpy_task

STATES = ("IDLE", "WORKING", "DISCONNECTED", "DECLINED", "LEFT")
REASON = r"folder [/data/val] is gone, [bold]\[really] :warning:"


def shown(what: RenderableType, width: int = 400) -> str:
    """On a console that somebody else has made."""
    console = Console(file=StringIO(), width=width)
    console.print(what)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def detail() -> admin_pb2.GetRoundResponse:
    part = admin_pb2.Participation(client_name="alpha", reason=REASON, outcome="OUTCOME_DECLINED")
    return admin_pb2.GetRoundResponse(round=admin_pb2.Round(number=1, reason=REASON), participations=[part])


def test_reason_of_a_site_is_shown_as_it_was_said() -> None:
    state = admin_pb2.GetStateResponse(federation_name="[/]", reason=REASON, round=detail().round)
    clients = admin_pb2.ListClientsResponse(clients=[admin_pb2.Client(name="alpha", reason=REASON)])
    stub: Any = SimpleNamespace(
        GetState=lambda *_, **__: state, ListClients=lambda *_, **__: clients, GetRound=lambda *_, **__: detail()
    )
    assert shown(picture(stub)).count(REASON) == 4
    assert shown(participation_table(detail(), 0.0)).startswith(f"Round 1: {REASON}\n")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(60, "less than a minute"), (61, "about 2 min"), (7141, "about 2 h"), (9000, "about 3 h"), (86_400, "about 24 h")],
)
def test_status_says_how_long_it_may_take_to_the_end(seconds: int, said: str) -> None:
    state = admin_pb2.GetStateResponse(federation_name="f", rounds=9)
    stub: Any = SimpleNamespace(
        GetState=lambda *_, **__: state, ListClients=lambda *_, **__: admin_pb2.ListClientsResponse()
    )
    assert "to its end" not in shown(picture(stub))
    state.expected_remaining.FromSeconds(seconds)
    assert f"\n{said} to its end, if rounds take as long as the latest ones\n" in shown(picture(stub))
    state.expected_remaining.FromSeconds(0)
    assert "\nmay end at any moment: the last round takes longer" in shown(picture(stub))


def test_site_that_waits_is_connected_and_any_other_was_seen_when_it_was_heard_last() -> None:
    clients = [admin_pb2.Client(name="site", state=f"CLIENT_STATE_{state}") for state in STATES]
    for client in clients:
        client.last_seen.FromSeconds(int(time.time()) - 600)
    listed = admin_pb2.ListClientsResponse(clients=clients)
    stub: Any = SimpleNamespace(
        GetState=lambda *_, **__: admin_pb2.GetStateResponse(), ListClients=lambda *_, **__: listed
    )
    rows = [line for line in shown(picture(stub)).splitlines() if line.split()[:1] == ["site"]][1:]
    assert ["connected" if " connected" in row else "10 min" if " 10 min " in row else row for row in rows] == [
        "connected" if state == "IDLE" else "10 min" for state in STATES
    ]


@pytest.mark.parametrize("term", ["dumb", ""])
def test_status_that_is_watched_where_nothing_can_be_drawn_over_is_written_again_and_again(
    term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rests = StringIO(), iter(range(2))

    def rest(_: float) -> None:
        if next(rests, None) is None:
            raise KeyboardInterrupt

    plain = Console(file=out, force_terminal=bool(term), width=80, _environ={"TERM": term})
    monkeypatch.setattr(status, "console", lambda: plain)
    monkeypatch.setattr(status.time, "sleep", rest)
    stub: Any = SimpleNamespace(
        GetState=lambda *_, **__: admin_pb2.GetStateResponse(),
        ListClients=lambda *_, **__: admin_pb2.ListClientsResponse(),
    )
    monkeypatch.setattr(status, "administration", lambda _: nullcontext(stub))
    monkeypatch.setattr(status, "_never_seen", lambda *_: "")
    status.show_status(Path(), watch=True, as_json=False)
    assert out.getvalue().count("0 sites connected") == 3


def test_sites_that_are_yet_to_come_are_named_and_of_hundreds_the_first(tmp_path: Path) -> None:
    opened = State(tmp_path)
    for number in range(300):
        statement = keeping(Site(f"site-{number:03}", SiteState.INVITED, 0))
        opened.database.execute(statement.sql, *statement.values)
    opened.close()
    stub: Any = SimpleNamespace(
        GetState=lambda *_, **__: admin_pb2.GetStateResponse(),
        ListClients=lambda *_, **__: admin_pb2.ListClientsResponse(clients=[admin_pb2.Client(name="site-000")]),
    )
    named = ", ".join(f"site-{number:03} (invited)" for number in range(1, 21))
    told = shown(picture(stub, tmp_path), width=1_000)
    assert f"Not seen yet: {named} and 279 more; `fedserver clients` lists them\n" in told


def test_round_is_named_once_and_a_part_that_went_well_has_no_reason() -> None:
    state = admin_pb2.Round(number=3, reason="round 3: 1 of 2 updates in, waiting for beta")
    part = admin_pb2.Participation(client_name="alpha", reason="ended", outcome="OUTCOME_COMPLETED", late_update="late")
    told = shown(participation_table(admin_pb2.GetRoundResponse(round=state, participations=[part]), 0.0))
    assert told.splitlines()[0] == "Round 3: 1 of 2 updates in, waiting for beta"
    assert ("ended" in told, "late" in told) == (False, True)


def test_round_at_work_is_shown_in_80_columns_without_a_broken_word() -> None:
    parts = [
        admin_pb2.Participation(rank=0, client_name="north", phase="PHASE_TRAINING", epoch=1, epochs=10),
        admin_pb2.Participation(rank=1, client_name="south", outcome="OUTCOME_COMPLETED", num_examples=123_456),
        admin_pb2.Participation(rank=2, client_name="west", outcome="OUTCOME_QUARANTINED", reason="far too large"),
    ]
    for part in parts:
        part.committed_size = part.body_size_bytes = 1_234_567
        part.duration.FromSeconds(1_234)
        part.last_seen.FromSeconds(0)
    table = participation_table(admin_pb2.GetRoundResponse(participations=parts), 5.0)
    narrow, wide = (shown(table, width).replace("─", "") for width in (80, 400))
    assert Counter(narrow.split()) == Counter(wide.split())


def test_round_in_which_every_column_says_something_leaves_room_for_names_and_reasons() -> None:
    reason = "norm: moved 12.3 times as far as the others"
    part = admin_pb2.Participation(rank=10, client_name="a" * 64, outcome="OUTCOME_QUARANTINED", reason=reason)
    part.committed_size = part.body_size_bytes = 123_456_789
    part.num_examples, part.weight = 123_456, 0.333
    part.duration.FromSeconds(12_345)
    part.last_seen.FromSeconds(0)
    table = participation_table(admin_pb2.GetRoundResponse(participations=[part]), 50_000.0)
    told = shown(table, 80)
    assert set(reason.split()) <= set(told.split())
    assert {"quarantined", "123456", "0.333", "a" * 12} <= set(told.split())
    name_and_reason = Counter("".join(shown(table, 40).split()))
    assert name_and_reason >= Counter("a" * 64 + reason.replace(" ", ""))


def test_column_that_says_nothing_of_any_row_is_left_out() -> None:
    rows = [("alpha", "", "1"), ("beta", "", "")]
    assert shown(compact_table("Sites", ("site", "note", "rounds"), rows)).split()[:3] == ["Sites", "site", "rounds"]
    assert shown(compact_table("Sites", ("site", "note"), [])).split()[:3] == ["Sites", "site", "note"]


def test_name_of_a_federation_is_announced_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    run.announce(ServerConfig(name="[/trial]", state=Path("state")), Listening("127.0.0.1:8443", None, "unix:x"))
    assert "\n[/trial]: brain_mri, 10 rounds" in capsys.readouterr().err


def test_class_whose_folder_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = Evaluation({"loss": None}, 1, undefined={"loss": "[/why]"}, class_names=["[/no]"], confusion=[[1]])
    show_evaluation(evaluation, SiteSummary(1, {}, weaknesses=["of [/data]"]))
    out = capsys.readouterr().out
    assert "undefined: [/why]" in out
    assert "of class [/no]: 1 as [/no]\nKnown weakness of the data: of [/data]\n" in out


@pytest.mark.parametrize("given", [{"class_names": ["no", "yes"]}, {"confusion": [[1, 0], [0, 1]]}])
def test_scores_with_half_of_a_confusion_matrix_are_shown_without_it(
    given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    show_evaluation(Evaluation({"loss": 0.5}, 2, **given), SiteSummary(2, {}, weaknesses=["few"]))
    out = capsys.readouterr().out
    assert "0.5000" in out
    assert out.endswith("\nKnown weakness of the data: few\n")
    assert "of class" not in out


def test_scores_of_images_in_sub_folders_are_shown_with_intervals_by_patient(
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels, scores, groups = [0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], np.array([0, 0, 1, 1])
    show_evaluation(binary_evaluation(labels, scores, ("no", "yes"), "yes", groups), SiteSummary(4, {}))
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if " accuracy " in line)
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert cells == ["accuracy", "1.0000", "0.5101 to 1.0000", "0.3424 to 1.0000"]
    assert "examples are of 2 patients, if each is one" in " ".join(out.split())


def test_who_watches_hears_how_the_federation_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contact = {"pid": 1, "admin": f"unix:{tmp_path / 'gone.sock'}"}
    word = tmp_path / "server.json"
    word.write_text(json.dumps(contact))

    def watch() -> None:
        with administration(tmp_path) as stub:
            word.write_text(json.dumps({**contact, "over": "all 3 rounds done", "rounds": 3}))
            stub.GetState(admin_pb2.GetStateRequest(), timeout=CALL_SECONDS)

    with pytest.raises(typer.Exit):
        watch()
    assert "its federation is over (all 3 rounds done)" in capsys.readouterr().err


def test_watched_status_as_json_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        show_status(tmp_path, watch=True, as_json=True)
    assert "--json is shown once: leave --watch off" in capsys.readouterr().err
