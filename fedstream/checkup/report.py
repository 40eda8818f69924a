"""Findings for people, a line each and one per note as they come, or for programs, as one JSON object at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fedstream.checkup.runner import Check, Finding, Verdict, examine

S = TypeVar("S")


async def report(checks: Sequence[Check[S]], scene: S, say: Callable[[str], None], *, as_json: bool) -> int:
    """Run the checks and say what they find; returns the exit status: 0 unless one failed, else the first one's code.

    Args:
        checks: in order.
        scene: what they look at.
        say: takes a line of output.
        as_json: one object instead of lines: `ok`, and `checks` with `name`, `verdict`, `found`, `advice` and
            `notes` of each.
    """
    findings: list[Finding] = []
    async for finding in examine(checks, scene):
        findings.append(finding)
        if not as_json:
            for line in finding.lines:
                say(line)
    codes = [finding.code for finding in findings if finding.result.verdict is Verdict.FAILED]
    if as_json:
        shown = {"ok": not codes, "checks": [_as_json(finding) for finding in findings]}
        say(json.dumps(shown, indent=2))
    return codes[0] if codes else 0


def _as_json(finding: Finding) -> dict[str, Any]:
    result = finding.result
    return {
        "name": finding.name,
        "verdict": result.verdict.value,
        "found": result.found,
        "advice": result.advice,
        "notes": list(result.notes),
    }
