"""Scenes in which the server refuses a call, one for each reason that a client can meet."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc

from fedserver.conformance.faults import Refused
from fedserver.conformance.findings import UnmetError
from fedserver.conformance.play import Play
from fedserver.conformance.scenes.scene import Scene, Script, join, rejoin
from fedserver.conformance.talk import Talk, upload_id
from fedstream.errors import (
    BodyIncomplete,
    BodyTooLong,
    ChecksumMismatch,
    ChunkTooLarge,
    DigestMismatch,
    InvalidManifest,
    InvalidRequest,
    LimitExceeded,
    ManifestConflict,
    ManifestRequired,
    NameMismatch,
    PermissionDenied,
    ProtocolError,
    RoundClosed,
    SchemaMismatch,
    Unauthenticated,
    UnexpectedMessage,
    UnknownModel,
    UnknownUpload,
    WrongOffset,
)

_DELAY_SECONDS = 3.0
_WATCH_SECONDS = 4.0


class NewReasonError(ProtocolError):
    """A reason that no client knows."""

    reason = "REASON_OF_A_LATER_VERSION"
    code = "FAILED_PRECONDITION"


def _stops(error: ProtocolError) -> Script:
    """Refused on the negotiation's stream: the client is not to come back by itself."""

    async def script(play: Play) -> None:
        await play.begin()
        talk = await play.session("R-HEL-2")
        await talk.greet()
        talk.end(Refused(error))
        await play.stays_away("R-ERR-3", f"refused with {error.reason}, it said hello again")

    return script


async def _waits_to_join(play: Play) -> None:
    await play.begin()
    talk = await play.session("R-HEL-2")
    await talk.greet()
    began = asyncio.get_running_loop().time()
    talk.end(Refused(_limit()))
    talk = await play.session("R-TIM-6", within=_DELAY_SECONDS + 20)
    waited = play.opened[-1] - began
    words = f"told to wait {_DELAY_SECONDS:g} s, it came back to Negotiate after {waited:.1f}"
    play.findings.check("R-TIM-6", waited >= _DELAY_SECONDS, words)
    await talk.welcome()
    await talk.agree()
    await play.delivered()


async def _comes_back(play: Play) -> None:
    """A crash inside the server is no word of the protocol."""
    talk = await join(play)
    talk.end(Refused(code=grpc.StatusCode.INTERNAL))
    talk = await rejoin(play, "R-ERR-2")
    await talk.agree(rule="R-ERR-2")
    await play.delivered(1, "R-ERR-2")


def _goes_on(rpc: str, error: ProtocolError | None, times: int = 1) -> Script:
    """Refused in such a way that the upload or download is to be finished all the same."""
    fault = Refused(error) if error is not None else Refused(code=grpc.StatusCode.INTERNAL)
    rule = "R-ERR-3" if error is not None else "R-ERR-2"

    async def script(play: Play) -> None:
        play.transfer.faults[rpc].extend([fault] * times)
        talk = await join(play)
        await talk.agree()
        what = error.reason if error is not None else "INTERNAL"
        await play.until(
            lambda: play.transfer.count(rpc) > times, rule, f"after {what} from {rpc} it did not get to {rpc} again", 30
        )
        await play.delivered(1, rule)
        await _and_the_next(play, talk)

    return script


def _waits(rpc: str) -> Script:
    async def script(play: Play) -> None:
        play.transfer.faults[rpc].append(Refused(_limit()))
        talk = await join(play)
        await talk.agree()
        await play.until(lambda: play.transfer.count(rpc) > 1, "R-TIM-6", f"it did not come back to {rpc}", 30)
        first, second = play.transfer.called(rpc)[:2]
        waited = second.at - first.at
        words = f"told to wait {_DELAY_SECONDS:g} s, it came back to {rpc} after {waited:.1f}"
        play.findings.check("R-TIM-6", waited >= _DELAY_SECONDS, words)
        await play.delivered(1, "R-TIM-6")

    return script


def _drops(rpc: str, error: ProtocolError) -> Script:
    """Refused since the update is not wanted: nothing more of it, and then the next offer."""

    async def script(play: Play) -> None:
        play.transfer.faults[rpc].append(Refused(error))
        talk = await join(play)
        await talk.agree()
        await _refused(play, rpc, error)
        await _sends_no_more(play, rpc, error, upload_id(1))
        await _and_the_next(play, talk)

    return script


def _gives_up(rpc: str, error: ProtocolError) -> Script:
    """Refused for a defect of the client: no second try. It says `failure`, or stops."""

    async def script(play: Play) -> None:
        play.transfer.faults[rpc].extend([Refused(error)] * 50)
        talk = await join(play)
        await talk.agree()
        await _refused(play, rpc, error)
        await _sends_no_more(play, rpc, error, "")
        ended = play.exit_status is not None or talk.has_heard("failure") or talk.has_heard("leave")
        words = f"after {error.reason} from {rpc} it said neither failure nor leave, and runs on"
        play.findings.check("R-RND-7", ended, words)

    return script


def _limits_retries(error: ProtocolError) -> Script:
    """DIGEST_MISMATCH again and again: the client is to send three times at most."""

    async def script(play: Play) -> None:
        play.transfer.faults["FinishUpload"].extend([Refused(error)] * 50)
        talk = await join(play)
        await talk.agree()
        await _refused(play, "FinishUpload", error)
        await play.rests(_WATCH_SECONDS + 2)
        tries = play.transfer.count("FinishUpload")
        words = f"after {error.reason} each time, it sent the update {tries} times"
        play.findings.check("R-ERR-3", tries <= 4, words)  # the first, and three more
        play.findings.check("R-RND-7", talk.is_closed or talk.has_heard("failure"), "it did not say failure")

    return script


async def _smaller_chunks(play: Play) -> None:
    """It may send smaller ones, or say that it cannot."""
    half = play.material.chunk_bytes // 2
    play.transfer.faults["WriteChunks"].append(Refused(ChunkTooLarge("too large", max_chunk_bytes=half)))
    talk = await join(play)
    await talk.agree()
    await _refused(play, "WriteChunks", ChunkTooLarge(""))
    play.transfer.terms.chunk_bytes = half
    uploads, name = play.transfer.uploads, upload_id(1)
    await play.until(
        lambda: (name in uploads and uploads[name].finished) or talk.has_heard("failure"),
        "R-ERR-3",
        "after CHUNK_TOO_LARGE it sent neither smaller chunks nor failure",
    )


async def _conflict(play: Play) -> None:
    """It may put the same manifest again, or say that it cannot; and then it takes the next offer."""
    error = ManifestConflict("another manifest was given first")
    play.transfer.faults["PutManifest"].append(Refused(error))
    talk = await join(play)
    await talk.agree()
    await _refused(play, "PutManifest", error)
    await play.rests(_WATCH_SECONDS)
    tries = play.transfer.count("PutManifest")
    play.findings.check("R-ERR-3", tries <= 3, f"after MANIFEST_CONFLICT it put its manifest {tries} times")
    uploads, name = play.transfer.uploads, upload_id(1)
    ended = talk.has_heard("failure") or (name in uploads and uploads[name].finished)
    play.findings.check("R-RND-7", ended, "after MANIFEST_CONFLICT it neither finished the update nor said failure")
    talk.unheard()  # the failure, before the next offer's answer
    await _and_the_next(play, talk)


async def _refused(play: Play, rpc: str, error: ProtocolError) -> None:
    await play.until(lambda: play.transfer.count(rpc) > 0, "R-RND-7", f"it did not come to {rpc}")
    play.note(f"from now on nothing is to come after {error.reason}")


async def _sends_no_more(play: Play, rpc: str, error: ProtocolError, subject: str) -> None:
    since = play.transfer.called(rpc)[0].at + 0.001
    await play.rests(_WATCH_SECONDS)
    sending = ("PutManifest", "WriteChunks", "FinishUpload") if subject else (rpc,)
    late = sorted({one.name for name in sending for one in play.transfer.called(name, subject, since)})
    words = f"after {error.reason} from {rpc} it called {', '.join(late)} again"
    play.findings.check("R-ERR-3", not late, words)


async def _and_the_next(play: Play, talk: Talk) -> None:
    if talk.is_closed:
        raise UnmetError("R-ERR-3", "it ended its session, where it was to wait for the next offer")
    await talk.agree(2, rule="R-ERR-3")
    await play.delivered(2, "R-ERR-3")


def _limit() -> LimitExceeded:
    return LimitExceeded("too much at once", timedelta(seconds=_DELAY_SECONDS), limit="streams")


def _named(rpc: str, error: ProtocolError | None, script: Script) -> Scene:
    reason = error.reason if error is not None else "INTERNAL"
    return Scene(f"{reason} from {rpc}", script)


_STOPPING = (
    InvalidRequest("a field is wrong", field="client_name"),
    UnexpectedMessage("that was not its turn"),
    Unauthenticated("join the federation first"),
    PermissionDenied("this site has been revoked"),
    NameMismatch("the certificate is for another name", name="another"),
    NewReasonError("a later version's"),
)
_GOING_ON = (
    ("GetManifest", None),
    ("ReadChunks", None),
    ("PutManifest", None),
    ("WriteChunks", None),
    ("FinishUpload", None),
    ("WriteChunks", WrongOffset("a gap", committed_size=0)),
    ("WriteChunks", ChecksumMismatch("damaged on its way", write_offset=0)),
    ("WriteChunks", ManifestRequired("the manifest first")),
    ("FinishUpload", BodyIncomplete("some bytes are missing", committed_size=0, body_size=1)),
    ("FinishUpload", DigestMismatch("other bytes", tensor="head/kernel")),
)
_DROPPING = (
    ("PutManifest", RoundClosed("the round is closed", round=1)),
    ("PutManifest", UnknownUpload("no such upload")),
    ("WriteChunks", RoundClosed("the round is closed", round=1)),
    ("WriteChunks", UnknownUpload("no such upload")),
    ("FinishUpload", RoundClosed("the round is closed", round=1)),
)
_GIVING_UP = (
    ("GetManifest", UnknownModel("no such model")),
    ("PutManifest", InvalidManifest("a tensor is wrong", tensor="head/kernel")),
    ("PutManifest", SchemaMismatch("other tensors", tensor="head/kernel", mine="F32 3", yours="F32 4")),
    ("PutManifest", InvalidRequest("a field is wrong", field="header")),
    ("PutManifest", NewReasonError("a later version's")),
    ("WriteChunks", BodyTooLong("past the end", body_size=1)),
)

SCENES = (
    *(_named("Negotiate", error, _stops(error)) for error in _STOPPING),
    Scene("LIMIT_EXCEEDED from Negotiate", _waits_to_join),
    Scene("INTERNAL from Negotiate", _comes_back),
    *(_named(rpc, error, _goes_on(rpc, error)) for rpc, error in _GOING_ON),
    *(Scene(f"LIMIT_EXCEEDED from {rpc}", _waits(rpc)) for rpc in ("ReadChunks", "PutManifest", "WriteChunks")),
    *(_named(rpc, error, _drops(rpc, error)) for rpc, error in _DROPPING),
    *(_named(rpc, error, _gives_up(rpc, error)) for rpc, error in _GIVING_UP),
    Scene("DIGEST_MISMATCH each time", _limits_retries(DigestMismatch("other bytes", tensor="head/kernel"))),
    Scene("CHUNK_TOO_LARGE from WriteChunks", _smaller_chunks),
    Scene("MANIFEST_CONFLICT from PutManifest", _conflict),
)
