"""Scenes of models on their way down: cut, damaged, another one, none."""

from __future__ import annotations

from collections.abc import Sequence

from fedserver.conformance.faults import Damage, Fault, Refused
from fedserver.conformance.play import Play
from fedserver.conformance.scenes.scene import CUT, Scene, Script, join, say_farewell
from fedserver.conformance.talk import upload_id


def _downloading(rpc: str, faults: Sequence[Fault], rule: str) -> Script:
    """A download in which things go wrong; the round is done in spite of them."""

    async def script(play: Play) -> None:
        play.transfer.faults[rpc].extend(faults)
        talk = await join(play)
        await talk.agree()
        await play.until(
            lambda: play.transfer.count(rpc) > len(faults), rule, f"after {faults[-1]} it did not call {rpc} again"
        )
        await play.delivered(1, rule, within=40)
        await say_farewell(play, talk)

    return script


async def _cut_in_mid_body(play: Play) -> None:
    chunk = play.material.chunk_bytes
    cuts = [Refused(after_bytes=3 * chunk), Refused(after_bytes=chunk)]
    play.transfer.faults["ReadChunks"].extend(cuts)
    talk = await join(play)
    await talk.agree()
    await play.delivered(1, "R-ERR-2", within=40)
    calls = play.transfer.called("ReadChunks")
    offsets = [int(one.detail.rsplit(" ", 1)[1]) for one in calls]
    went_on = len(offsets) == 3 and offsets[1:] == [3 * chunk, 4 * chunk]
    whole_tensors = play.transfer.bytes_down <= len(b"".join(play.material.base.values)) + chunk
    words = f"after cuts at {3 * chunk} and {4 * chunk} bytes it asked from {offsets[1:]} on"
    play.findings.advise("R-DL-4", went_on or whole_tensors, words)
    await say_farewell(play, talk)


async def _other_model(play: Play) -> None:
    """Whether it asks again or gives the offer up, it must not train from a model that it was not offered."""
    play.transfer.faults["GetManifest"].extend([Damage.OTHER_MODEL] * 100)
    talk = await join(play)
    await talk.agree()
    await play.until(lambda: play.transfer.count("GetManifest") > 0, "R-RND-7", "it did not ask for the manifest")
    await play.rests(3.0)
    trained = play.transfer.count("PutManifest", upload_id(1))
    play.findings.check("R-DL-1", not trained, "it trained from a model of another digest than it had asked for")


SCENES = (
    Scene("a download that is cut twice", _cut_in_mid_body),
    Scene("a download with a wrong crc32c", _downloading("ReadChunks", [Damage.CRC], "R-DL-3")),
    Scene("a download with a gap", _downloading("ReadChunks", [Damage.GAP], "R-DL-3")),
    Scene("a download with other bytes", _downloading("ReadChunks", [Damage.DATA], "R-DL-3")),
    Scene("a base model's manifest that is cut", _downloading("GetManifest", [CUT], "R-ERR-2")),
    Scene("the manifest of another model", _other_model),
)
