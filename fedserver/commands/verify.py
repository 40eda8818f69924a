"""`fedserver verify`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import typer

from fedserver.commands.admin import reading
from fedserver.exit_codes import ExitCode, fail
from fedserver.verification import RoundCheck, UnknownRoundNumber, Verdict, verify


def show_verdict(state: Path, number: int | None, *, as_json: bool) -> ExitCode:
    """Say what agrees and what differs; returns `FAILED` if anything differs."""
    with reading(state) as reader:
        try:
            verdict = verify(reader, number)
        except UnknownRoundNumber as error:
            raise fail(str(error), ExitCode.BAD_CONFIGURATION) from error
    typer.echo(json.dumps(_fields(verdict), indent=2) if as_json else _words(verdict))
    return ExitCode.FINISHED if verdict.agrees else ExitCode.FAILED


def _fields(verdict: Verdict) -> dict[str, object]:
    return {"agrees": verdict.agrees, **dataclasses.asdict(verdict)}


def _words(verdict: Verdict) -> str:
    lines = [line for check in verdict.rounds for line in _lines(check)]
    lines += [f"DIFFERS: {difference}" for difference in verdict.others]
    if not verdict.rounds:  # nor is there a hash of any entry to note down
        return "\n".join([*lines, "no round is over"]) if lines else "nothing to check yet: no round is over"
    again = sum(check.recomputed for check in verdict.rounds)
    ending = "everything agrees" if verdict.agrees else "NOT everything agrees; see above"
    lines.append(f"{len(verdict.rounds)} rounds checked, {again} of them made again from their updates: {ending}")
    lines.append(f"hash of the last ledger entry: {verdict.last_hash}")
    return "\n".join(lines)


def _lines(check: RoundCheck) -> list[str]:
    name = f"round {check.number}"
    differing = [f"{name} DIFFERS: {difference}" for difference in check.differences]
    return differing or [f"{name} agrees: {check.checked}"]
