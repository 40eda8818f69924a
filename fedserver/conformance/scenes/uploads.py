"""Scenes of updates on their way up: cut at every place, resumed, sent by a client that was killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedserver.conformance.faults import Damage, Fault, Refused
from fedserver.conformance.play import Play
from fedserver.conformance.scenes.scene import CUT, Scene, Script, join, rejoin, say_farewell
from fedserver.conformance.talk import upload_id


def _uploading(faults: Mapping[str, Sequence[Fault]], rule: str) -> Script:
    """An upload in which things go wrong; it is finished in spite of them, and nothing is trained again."""

    async def script(play: Play) -> None:
        for rpc, some in faults.items():
            play.transfer.faults[rpc].extend(some)
        talk = await join(play)
        await talk.agree()
        await play.delivered(1, rule, within=40)
        await say_farewell(play, talk)

    return script


def _cut_after(chunks: float, *, loses: bool = False) -> Script:
    async def script(play: Play) -> None:
        size = max(1, int(chunks * play.material.chunk_bytes))
        script = _uploading({"WriteChunks": [Refused(after_bytes=size, loses=loses)]}, "R-UP-12")
        await script(play)

    return script


async def _cut_again_and_again(play: Play) -> None:
    size = play.material.chunk_bytes
    faults = {"WriteChunks": [Refused(after_bytes=size, loses=number % 2 == 1) for number in range(5)]}
    await _uploading(faults, "R-UP-12")(play)


async def _killed_in_mid_upload(play: Play) -> None:
    talk = await join(play)
    play.transfer.read_seconds = 0.1
    await talk.agree()
    uploads, name = play.transfer.uploads, upload_id(1)
    await play.until(
        lambda: name in uploads and len(uploads[name].body) > 2 * play.material.chunk_bytes, "R-RND-7", "no chunk came"
    )
    await play.kill()
    talk.end()
    play.transfer.read_seconds = 0
    before, streams = len(play.transfer.uploads[name].body), play.transfer.count("WriteChunks")
    await play.begin()
    talk = await rejoin(play)
    await talk.agree(rule="R-RND-4")
    await play.delivered(1, "R-UP-6")
    first = next(iter(play.transfer.called("WriteChunks")[streams:]), None)
    words = f"started again, it wrote {first.detail if first else 'nothing'}, where {before} bytes were committed"
    play.findings.advise("R-RND-5", first is not None and first.detail == f"from offset {before}", words)
    await say_farewell(play, talk)


async def _nothing_missing(play: Play) -> None:
    play.transfer.lacks_nothing = True
    talk = await join(play)
    await talk.agree()
    await play.delivered()
    await say_farewell(play, talk)


async def _disorder(play: Play) -> None:
    play.transfer.faults["PutManifest"].append(Damage.DISORDER)
    talk = await join(play)
    await talk.agree()
    await play.until(lambda: play.transfer.count("PutManifest") > 0, "R-RND-7", "no update came")
    began = play.transfer.calls[-1].at
    await play.rests(1.0)
    again = play.transfer.count("PutManifest") > 1  # it may ask again, and be answered well
    wrote = play.transfer.count("WriteChunks", since=began)
    play.findings.check("R-UP-5", again or not wrote, "it uploaded by a list of tensors that made no sense")


SCENES = (
    Scene("an upload cut after one chunk", _cut_after(1)),
    Scene("an upload cut after three and a half chunks", _cut_after(3.5)),
    Scene("an upload cut with bytes lost", _cut_after(3, loses=True)),
    Scene("an upload cut five times", _cut_again_and_again),
    Scene("a manifest whose answer is lost", _uploading({"PutManifest": [Refused(after_bytes=1)]}, "R-UP-7")),
    Scene("a status that is lost", _uploading({"WriteChunks": [CUT], "GetUploadStatus": [CUT]}, "R-UP-17")),
    Scene("a finish that is lost", _uploading({"FinishUpload": [CUT]}, "R-UP-14")),
    Scene("a finish whose answer is lost", _uploading({"FinishUpload": [Refused(after_bytes=1)]}, "R-UP-17")),
    Scene("a client killed in the middle of an upload", _killed_in_mid_upload),
    Scene("an update of which nothing is missing", _nothing_missing),
    Scene("missing tensors out of order", _disorder),
)
