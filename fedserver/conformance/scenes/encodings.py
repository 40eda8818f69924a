"""Scenes in which updates travel encoded."""

from __future__ import annotations

from fedserver.conformance.findings import SkippedError
from fedserver.conformance.play import Play
from fedserver.conformance.scenes.scene import Scene, Script, say_farewell
from fedserver.conformance.talk import upload_id
from fedstream import wire
from fedstream.encodings import Encoding


def _encoded(encoding: Encoding) -> Script:
    """The server would have updates in this encoding. That a client does not use it is no breach."""

    async def script(play: Play) -> None:
        await play.begin()
        talk = await play.session("R-HEL-2")
        offered = [encoding, Encoding.RAW]
        await talk.welcome(offered)
        if encoding not in wire.read_encodings(talk.hello.capabilities.encodings):
            raise SkippedError(f"the client does not list {encoding.value}")
        for number, base in ((1, play.material.base), (2, play.material.later)):
            await talk.agree(number, base=base)
            await play.delivered(number, "R-ENC-3")
        used = {one.encoding for one in play.transfer.uploads[upload_id(2)].announced.encoded}
        play.note(f"encodings used: {sorted(one.value for one in used)}")
        await say_farewell(play, talk)

    return script


SCENES = tuple(
    Scene(f"updates in {one.value}", _encoded(one), ("R-ENC-2", "R-ENC-3"))
    for one in Encoding
    if one is not Encoding.RAW
)
