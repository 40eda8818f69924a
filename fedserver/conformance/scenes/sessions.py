"""Scenes of whole sessions: greeting, being declined, coming back, the end."""

from __future__ import annotations

from itertools import pairwise

from fedserver.conformance.faults import Refused
from fedserver.conformance.findings import UnmetError
from fedserver.conformance.play import Play
from fedserver.conformance.scenes.scene import CUT, Scene, join, rejoin, say_farewell
from fedserver.conformance.talk import Talk
from fedstream import limits, wire
from fedstream.errors import InvalidManifest, Superseded
from fedstream.schema import ModelSchema
from fedstream.v1 import common_pb2, negotiation_pb2

_UNKNOWN_FIELD = bytes([0xAA, 0x7C, 3]) + b"new"
"""Field 1989, three bytes: a later version's."""

_UNKNOWN_VALUE = 99


async def _whole(play: Play) -> None:
    """Two rounds start from the same model, which a client fetches once, and the third from another."""
    talk = await join(play)
    first, second = play.material.base, play.material.later
    for number, base in ((1, first), (2, first), (3, second)):
        await talk.agree(number, base=base)
        await play.delivered(number)
        await talk.round_over(number)
    fetched = play.transfer.count("ReadChunks", second.manifest.model_digest().hex)
    play.findings.check("R-RND-2", fetched > 0, "it did not fetch the model from which the third round starts")
    asked = play.transfer.count("ReadChunks", first.manifest.model_digest().hex)
    play.findings.check("R-DL-2", asked == 1, f"it asked {asked} times for the same base model's tensors")
    play.findings.check("R-HEL-1", not talk.unheard(), "messages came that nobody had asked for")
    await say_farewell(play, talk)


async def _waiting_first(play: Play) -> None:
    await play.begin()
    talk = await play.session("R-HEL-2")
    await talk.say(waiting=negotiation_pb2.Waiting(reason="for the initial model"))
    await play.rests(1.0)
    await talk.welcome()
    await talk.agree()
    await play.delivered()


async def _declined(play: Play) -> None:
    await play.begin()
    talk = await play.session("R-HEL-2")
    await talk.greet()
    declined = negotiation_pb2.Declined(
        reason=negotiation_pb2.DECLINE_REASON_EXAMPLES, message="this federation takes sites with 1,000 examples"
    )
    await talk.say(declined=declined)
    talk.end()
    await play.stays_away("R-HEL-7", "declined, it said hello again")


async def _schema_asked(play: Play) -> None:
    await play.begin()
    talk = await play.session("R-HEL-2")
    hello = await talk.greet()
    await talk.say(schema_query=negotiation_pb2.SchemaQuery())
    schema = await _hear_schema(play, talk)
    same = schema.digest() == hello.schema_sha256
    play.findings.check("R-HEL-6", same, "the schema that it sent has another digest than its hello")
    declined = negotiation_pb2.Declined(
        reason=negotiation_pb2.DECLINE_REASON_SCHEMA,
        message="tensor other is missing",
        differences=[negotiation_pb2.TensorDifference(server=common_pb2.TensorSpec(name="other"))],
    )
    await talk.say(declined=declined)
    talk.end()
    await play.stays_away("R-HEL-7", "declined for its schema, it said hello again")


async def _hear_schema(play: Play, talk: Talk) -> ModelSchema:
    specs = []
    while True:
        part = await talk.hear("schema_part", "R-HEL-6")
        small = len(part.tensors) <= limits.MAX_TENSORS_PER_PART
        play.findings.check("R-HEL-6", small, f"a part of {len(part.tensors)} tensors")
        try:
            specs += [wire.read_spec(tensor) for tensor in part.tensors]
        except InvalidManifest as error:
            raise UnmetError("R-HEL-6", error.message) from error
        if part.last:
            return ModelSchema(tuple(specs))


async def _away_for_a_while(play: Play) -> None:
    await play.begin()
    for _ in range(4):
        talk = await play.session("R-TIM-5", within=30)
        await talk.greet()
        talk.end(CUT)
    talk = await play.session("R-TIM-5", within=30)
    gaps = [later - earlier for earlier, later in pairwise(play.opened)]
    shown = ", ".join(f"{gap:.2f}" for gap in gaps)
    patient = all(gap >= 0.2 for gap in gaps) and gaps[-1] >= 2 * min(gaps[0], 1.0)
    play.findings.check("R-TIM-5", patient, f"cut off four times, it came back after {shown} s")
    await talk.welcome()
    await talk.agree()
    await play.delivered()


async def _ended_without_reason(play: Play) -> None:
    talk = await join(play)
    await talk.agree()
    await play.delivered()
    talk.end()
    talk = await rejoin(play, "R-ERR-2")
    await say_farewell(play, talk)


async def _server_restarts(play: Play) -> None:
    talk = await join(play)
    await talk.agree()
    await play.until(lambda: play.transfer.count("PutManifest") > 0, "R-RND-7", "no update came")
    await play.restart()
    talk = await rejoin(play)
    await talk.agree(rule="R-RND-4")
    await play.delivered()
    await say_farewell(play, talk)


async def _superseded(play: Play) -> None:
    talk = await join(play)
    talk.end(Refused(Superseded("a newer stream of this client took over")))
    allowed = 1
    try:
        talk = await play.session("R-HEL-9", within=5)
    except UnmetError:
        allowed = 0  # it may come back once; it need not
    if allowed:
        await talk.welcome()
        talk.end(Refused(Superseded("a newer stream of this client took over")))
    await play.stays_away("R-HEL-9", "superseded twice, it came again")


async def _unknown(play: Play) -> None:
    await play.begin()
    talk = await play.session("R-HEL-2")
    await talk.send(negotiation_pb2.NegotiateResponse.FromString(_UNKNOWN_FIELD))
    await talk.welcome(more=(_UNKNOWN_VALUE,))
    await talk.send(negotiation_pb2.NegotiateResponse.FromString(_UNKNOWN_FIELD))
    await talk.agree(1, rule="R-EVO-2")
    await play.delivered(1, "R-EVO-2")
    offer = talk.offer_of(2)
    offer.MergeFromString(_UNKNOWN_FIELD)
    offer.plan.MergeFromString(_UNKNOWN_FIELD)
    await talk.say(offer=offer)
    await talk.hear("accept", "R-EVO-1")
    await talk.confirm(2)
    await play.delivered(2, "R-EVO-1")
    await talk.round_over(2, _UNKNOWN_VALUE)
    await talk.agree(3, rule="R-EVO-3")
    await play.delivered(3, "R-EVO-3")
    await say_farewell(play, talk)


async def _over_at_once(play: Play) -> None:
    await say_farewell(play, await join(play))


SCENES = (
    Scene("three rounds from start to end", _whole),
    Scene("the federation is over when the client comes", _over_at_once),
    Scene("the server is not ready at first", _waiting_first),
    Scene("declined", _declined),
    Scene("asked for the schema, then declined", _schema_asked),
    Scene("cut off four times before the welcome", _away_for_a_while),
    Scene("the stream ends with OK in the middle", _ended_without_reason),
    Scene("the server restarts in the middle of a round", _server_restarts),
    Scene("superseded twice", _superseded),
    Scene("unknown fields, kinds and values", _unknown),
)
