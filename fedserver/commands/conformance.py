"""`fedserver conformance`."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import typer

from fedserver.conformance.findings import SceneResult
from fedserver.conformance.material import material
from fedserver.conformance.play import Command
from fedserver.conformance.report import as_fields, in_words, scene_line
from fedserver.conformance.runner import conforms, judge_all, play_all
from fedserver.conformance.scenes import SCENES
from fedserver.conformance.subject import CommandError, require_command
from fedserver.exit_codes import ExitCode, fail
from fedserver.signals import leave_in_order_on_signals


def list_scenes() -> None:
    """Print the name of every scene."""
    for scene in SCENES:
        typer.echo(scene.name)


def try_client(
    words: Sequence[str],
    limited: str,
    join: str,
    member: str,
    task: str,
    only: Sequence[str],
    out: Path | None,
    lanes: int,
    *,
    as_json: bool,
) -> ExitCode:
    """Play the scenes with a client and say what was seen; returns `FAILED` if it does not conform."""
    scenes = [scene for scene in SCENES if not only or any(part in scene.name for part in only)]
    if not scenes:
        raise fail("no scene has such a name; --list shows them", ExitCode.BAD_CONFIGURATION)
    try:
        require_command(words)
        played_with = material(task)
    except (CommandError, ValueError) as error:
        raise fail(str(error), ExitCode.BAD_CONFIGURATION) from error
    if out is not None and out.exists():
        raise fail(f"{out} is there already; name a folder that is to be made", ExitCode.BAD_CONFIGURATION)
    folder = out or Path(tempfile.mkdtemp(prefix="conformance-"))
    done: list[SceneResult] = []

    def told(result: SceneResult) -> None:
        done.append(result)
        typer.echo(scene_line(result, len(done), len(scenes)), err=as_json)

    leave_in_order_on_signals()  # or the clients would go on without it
    command = Command(words, *(shlex.split(text) for text in (limited, join, member)))
    try:
        results = asyncio.run(play_all(scenes, command, played_with, folder, lanes, told))
    finally:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
    judgements = judge_all(scenes, results)
    all_played = len(scenes) == len(SCENES)
    passed = conforms(judgements, results, all_played=all_played)
    if as_json:
        typer.echo(json.dumps(as_fields(judgements, results, passed=passed), indent=2))
    else:
        typer.echo(in_words(judgements, results, passed=passed, all_played=all_played))
    return ExitCode.FINISHED if passed else ExitCode.FAILED
