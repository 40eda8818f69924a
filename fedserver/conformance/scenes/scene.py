"""What a scene is: a name, and a script."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fedserver.conformance.faults import Refused
from fedserver.conformance.play import Play
from fedserver.conformance.talk import Talk

CUT = Refused()
"""As the network breaks."""

Script = Callable[[Play], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scene:
    """`name` says what happens in it, for people and for `--only`. `alone` are rules that it alone, and scenes of its
    kind, can show: where all of these are skipped, so are the rules."""

    name: str
    script: Script
    alone: tuple[str, ...] = ()


async def join(play: Play) -> Talk:
    """Start the client and welcome it."""
    await play.begin()
    talk = await play.session("R-HEL-2")
    await talk.welcome()
    return talk


async def rejoin(play: Play, rule: str = "R-TIM-5") -> Talk:
    """Welcome it again after its session was cut."""
    talk = await play.session(rule)
    await talk.welcome()
    return talk


async def say_farewell(play: Play, talk: Talk) -> None:
    """End the federation, and see that the client takes the final model, closes its side and stays away."""
    sessions = len(play.opened)
    final = play.material.final.manifest.model_digest().hex
    await talk.federation_over()
    await play.until(
        lambda: talk.is_closed or play.exit_status is not None, "R-RND-9", "it did not end after federation_outcome"
    )
    await play.rests(0.2)  # that a call was cancelled is seen a moment after its end
    play.findings.advise("R-RND-9", play.transfer.count("GetManifest", final) > 0, "it went without the final model")
    closed = talk.is_closed and not talk.was_cut_off
    play.findings.advise("R-RND-9", closed, "it broke off its call, where it was to close its side")
    talk.end()
    await play.rests(1.0)
    play.findings.check("R-RND-9", len(play.opened) == sessions, "it connected again after federation_outcome")
