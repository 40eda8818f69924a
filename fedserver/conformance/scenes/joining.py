"""Scenes of joining with a token, and of certificates. They need the client's words for both."""

from __future__ import annotations

from datetime import timedelta

from fedserver.conformance.findings import UnmetError
from fedserver.conformance.office import Wrong
from fedserver.conformance.play import Play
from fedserver.conformance.scenes.scene import Scene, Script, join, rejoin, say_farewell
from fedstream.certificates import issue_server, make_authority

_SHORT = timedelta(minutes=1)
"""Of a certificate that is dated back by more than twice that: less than a third of its validity is left."""


async def _joined_and_member(play: Play) -> None:
    """The first answer to the enrolment is lost; the same key is to come again, by itself or with the same command."""
    office = await play.open_office()
    office.lost_answers = 1
    if await play.join_federation() != 0 and await play.join_federation() != 0:
        raise UnmetError("R-JOIN-3", f"joining did not end with 0: {play.last_words()}")
    play.findings.advise("R-JOIN-4", len(set(office.keys)) == 1 < len(office.keys), "another key came the second time")
    play.findings.check("R-JOIN-5", True, "")
    talk = await join(play)
    shown = talk.shown_certificate()
    play.findings.check("R-CON-3", shown in office.certificates, "it did not show the certificate that it was given")
    await talk.agree()
    await play.delivered()
    await say_farewell(play, talk)


async def _another_server(play: Play) -> None:
    office = await play.open_office()
    status = await play.join_federation(issue_server(make_authority(), []))
    words = "it sent the token's secret to a server with another certificate than the token names"
    play.findings.check("R-JOIN-2", not office.keys, words)
    play.findings.check("R-CON-2", not office.keys and status != 0, words if office.keys else "joining ended with 0")


def _given(wrong: Wrong) -> Script:
    async def script(play: Play) -> None:
        office = await play.open_office()
        office.wrong = wrong
        status = await play.join_federation()
        play.findings.check("R-JOIN-5", status != 0, f"given {wrong.value}, it ended with 0")

    return script


async def _another_authority(play: Play) -> None:
    """After joining, a server of another federation answers in the old one's place."""
    office = await play.open_office()
    if await play.join_federation() != 0:
        raise UnmetError("R-JOIN-3", f"joining did not end with 0: {play.last_words()}")
    await play.close()
    office.server = issue_server(make_authority(), [])
    await play.open()
    await play.begin()
    await play.rests(4.0)
    talked = play.described or len(play.opened)
    play.findings.check("R-CON-3", not talked, "it talked to a server that the federation's authority has not signed")


async def _about_to_end(play: Play) -> None:
    office = await play.open_office()
    office.validity = _SHORT
    if await play.join_federation() != 0:
        raise UnmetError("R-JOIN-3", f"joining did not end with 0: {play.last_words()}")
    await join(play)
    await play.rests(2.0)
    await play.restart()  # not the stream alone: the certificate is shown when a connection is made
    talk = await rejoin(play)
    shown = talk.shown_certificate()
    renewed = office.renewals > 0 and shown == office.certificates[-1]
    play.findings.advise(
        "R-JOIN-6", renewed, "its certificate was about to end, and its next connection had no new one"
    )


_ALONE = ("R-CON-2", "R-CON-3", "R-JOIN-2", "R-JOIN-3", "R-JOIN-4", "R-JOIN-5", "R-JOIN-6")

SCENES = (
    Scene("joining, with an answer that is lost", _joined_and_member, _ALONE),
    Scene("joining a server that the token does not name", _another_server, _ALONE),
    *(Scene(f"joining, given {wrong.value}", _given(wrong), _ALONE) for wrong in Wrong),
    Scene("a member before a server of another authority", _another_authority, _ALONE),
    Scene("a member whose certificate is about to end", _about_to_end, _ALONE),
)
