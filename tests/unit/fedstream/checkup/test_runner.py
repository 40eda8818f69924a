"""Checks in a row: what is skipped, what is said, and with which exit status."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from fedstream.checkup.report import report
from fedstream.checkup.runner import Check, Result, Verdict, examine, failed, ok, skipped, warning

pytestmark = pytest.mark.numpy_task

Looked = list[str]


def check(name: str, result: Result, code: int = 1, needs: tuple[str, ...] = ()) -> Check[Looked]:
    def look(looked: Looked) -> Result:
        looked.append(name)
        return result

    return Check(name, look, code, needs)


async def said(checks: Sequence[Check[Looked]], *, as_json: bool = False) -> tuple[int, list[str], Looked]:
    lines: list[str] = []
    looked: Looked = []
    return await report(checks, looked, lines.append, as_json=as_json), lines, looked


async def test_report_says_a_line_per_check_and_skips_what_depends_on_a_failure() -> None:
    checks = [
        check("a", failed("it is off", "Switch it on"), 5),
        check("b", ok("fine"), 2, ("a",)),
        check("c", ok("fine"), 2, ("b",)),
        check("d", warning("it is old", "Get a new one"), 2),
    ]

    assert await said(checks) == (
        5,
        [
            "failed   a: it is off. Switch it on",
            "skipped  b: nothing to look at without a",
            "skipped  c: nothing to look at without b",
            "warning  d: it is old. Get a new one",
        ],
        ["a", "d"],
    )


async def test_report_of_warnings_alone_exits_0_and_a_need_that_is_not_in_the_row_is_none() -> None:
    checks = [check("a", ok("fine"), 3, ("gone",)), check("b", warning("old", "Renew it")), check("c", skipped("no"))]

    status, _, looked = await said(checks)

    assert (status, looked) == (0, ["a", "b", "c"])


async def test_report_gives_each_note_a_line_whatever_is_in_a_name() -> None:
    _, lines, _ = await said([check("a", warning("two files", "Look at them", ["bad\nname.png", "other.png"]))])

    assert lines == ["warning  a: two files. Look at them", "         - bad name.png", "         - other.png"]


async def test_report_as_json_is_one_object() -> None:
    checks = [
        check("a", ok("fine")),
        check("b", failed("off", "Switch it on"), 4),
        check("c", warning("old", notes=["one part", "another"])),
    ]
    status, lines, _ = await said(checks, as_json=True)

    assert status == 4
    assert json.loads("\n".join(lines)) == {
        "ok": False,
        "checks": [
            {"name": "a", "verdict": "ok", "found": "fine", "advice": "", "notes": []},
            {"name": "b", "verdict": "failed", "found": "off", "advice": "Switch it on", "notes": []},
            {"name": "c", "verdict": "warning", "found": "old", "advice": "", "notes": ["one part", "another"]},
        ],
    }


async def test_check_that_breaks_fails_by_itself_and_the_others_go_on() -> None:
    def broken(_: Looked) -> Result:
        raise KeyError("x")

    async def slow(_: Looked) -> Result:
        return ok("a coroutine may look too")

    found = [finding async for finding in examine([Check("a", broken, 1), Check("b", slow, 1)], [])]

    assert [one.result.verdict for one in found] == [Verdict.FAILED, Verdict.OK]
    assert found[0].lines[0].startswith("failed   a: the check itself broke (KeyError: 'x'). This is a defect")
