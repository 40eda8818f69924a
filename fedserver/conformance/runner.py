"""Plays the scenes, several at a time, and collects what they found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from fedserver.conformance.findings import (
    Findings,
    Judgement,
    SceneResult,
    SkippedError,
    UnmetError,
    Verdict,
    judge,
)
from fedserver.conformance.material import Material
from fedserver.conformance.play import Command, Play, playing
from fedserver.conformance.rules import Level
from fedserver.conformance.scenes.scene import Scene

SCENE_SECONDS = 120.0
"""After which a scene is given up, whatever it waits for."""

Told = Callable[[SceneResult], None]


async def play_all(
    scenes: Sequence[Scene], command: Command, material: Material, folder: Path, lanes: int, told: Told
) -> list[SceneResult]:
    """Play every scene, `lanes` at a time, each in a folder of its own below `folder`. `told` hears of each at its end.

    Raises:
        CommandError: the client cannot be started at all.
    """
    lane = asyncio.Semaphore(lanes)

    async def one(number: int, scene: Scene) -> SceneResult:
        async with lane:
            place = folder / f"{number:02d}_{'_'.join(scene.name.split())}"
            result = await play_one(scene, command, material, place)
        told(result)
        return result

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number, scene)) for number, scene in enumerate(scenes, start=1)]
    return [task.result() for task in tasks]


async def play_one(scene: Scene, command: Command, material: Material, folder: Path) -> SceneResult:
    """Play one scene to its end, or to where the client made that impossible."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    trouble = skipped = ""
    findings = Findings()
    async with playing(command, material, folder) as play:
        findings = play.findings
        try:
            async with asyncio.timeout(SCENE_SECONDS):
                await scene.script(play)
        except UnmetError as error:
            trouble = _unmet(error, play)
        except SkippedError as error:
            skipped = str(error)
        except TimeoutError:
            trouble = f"the scene was given up after {SCENE_SECONDS:g} s"
    return SceneResult(scene.name, findings, loop.time() - began, trouble, skipped)


def _unmet(error: UnmetError, play: Play) -> str:
    play.findings.check(error.rule, False, error.evidence)
    play.note(f"BROKEN {error}")
    return str(error)


def judge_all(scenes: Sequence[Scene], results: Sequence[SceneResult]) -> list[Judgement]:
    """What all scenes say of every rule."""
    skipped = {one.name for one in results if one.skipped}
    spared = {rule for scene in scenes if scene.name in skipped for rule in scene.alone}
    return judge(results, spared)


def conforms(judgements: Sequence[Judgement], results: Sequence[SceneResult], *, all_played: bool) -> bool:
    """Whether every rule that obliges was kept, and, where all scenes were played, seen to be kept."""
    wrong = {Verdict.BROKEN, Verdict.UNSEEN} if all_played else {Verdict.BROKEN}
    obliging = [one for one in judgements if one.rule.level is Level.MUST]
    return not any(one.verdict in wrong for one in obliging) and not any(one.trouble for one in results)
