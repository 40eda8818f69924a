"""Scenes of one offer: agreed, cut off in each state, taken back, replaced, limited, slow."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

from fedserver.conformance.play import Play
from fedserver.conformance.scenes.scene import CUT, Scene, join, rejoin, say_farewell
from fedserver.conformance.talk import Talk, offer_id, upload_id
from fedstream.v1 import negotiation_pb2

_ENDLESS_EPOCHS = 2_000_000
_GRACE_SECONDS = 1.0
"""After it, nothing more may come for an offer that was taken back; until then it may be on its way."""

_LEASE_SECONDS = 2.0


async def _cut_when_offered(play: Play) -> None:
    talk = await join(play)
    await talk.offer()
    await talk.hear("accept", "R-RND-1")
    talk.end(CUT)
    talk = await rejoin(play)
    await talk.agree(rule="R-RND-4")
    await play.delivered()
    await say_farewell(play, talk)


async def _cut_when_confirmed(play: Play) -> None:
    talk = await join(play)
    await talk.agree()
    talk.end(CUT)
    talk = await rejoin(play)
    await talk.agree(rule="R-RND-4")
    await play.delivered()
    await say_farewell(play, talk)


async def _cut_when_delivered(play: Play) -> None:
    talk = await join(play)
    await talk.agree()
    await play.delivered()
    talk.end(CUT)
    talk = await rejoin(play)
    await say_farewell(play, talk)


async def _lost_after_delivery(play: Play) -> None:
    """The server found the update damaged and offers again: what was kept is sent, and nothing else."""
    talk = await join(play)
    await talk.agree()
    await play.delivered()
    play.transfer.forget(upload_id(1))
    talk.end(CUT)
    talk = await rejoin(play)
    await talk.agree(rule="R-RND-4")
    await play.delivered(1, "R-RND-4")
    await say_farewell(play, talk)


async def _confirmed_twice(play: Play) -> None:
    talk = await join(play)
    await talk.agree()
    await talk.confirm()
    await play.delivered()
    await play.rests(0.5)
    finishes = play.transfer.count("PutManifest", upload_id(1))
    play.findings.check("R-RND-3", finishes == 1, f"confirmed twice, it put {finishes} manifests")
    play.findings.check("R-RND-1", not talk.unheard(), "it answered a confirm, which is no question, with a message")
    await say_farewell(play, talk)


async def _cancelled_in_training(play: Play) -> None:
    talk = await _in_endless_training(play)
    await talk.cancel()
    await _goes_on(play, talk, "after cancel")


async def _withdrawn(play: Play) -> None:
    talk = await join(play)
    await talk.offer()
    await talk.hear("accept", "R-RND-1")
    await play.rests(1.0)  # time in which an impatient client would begin
    await talk.say(withdraw=negotiation_pb2.Withdrawal(offer_id=offer_id(1), reason="the round closed first"))
    await _goes_on(play, talk, "after withdraw")


async def _another_offer_in_training(play: Play) -> None:
    talk = await _in_endless_training(play)
    play.transfer.terms.closed.add(upload_id(1))
    await talk.agree(2, rule="R-RND-3")
    await play.delivered(2, "R-RND-3")
    stray = play.transfer.count("PutManifest", upload_id(1))
    play.findings.check("R-RND-3", not stray, "it sent an update for the offer that another one had replaced")
    await say_farewell(play, talk)


async def _another_offer_in_download(play: Play) -> None:
    play.transfer.read_seconds = 0.3
    talk = await join(play)
    await talk.agree()
    await play.until(lambda: play.transfer.count("ReadChunks") > 0, "R-RND-7", "it did not download")
    play.transfer.terms.closed.add(upload_id(1))
    await talk.agree(2, rule="R-RND-3")
    play.transfer.read_seconds = 0
    await play.delivered(2, "R-RND-3")
    await play.rests(1.0)
    stray = play.transfer.count("PutManifest", upload_id(1))
    play.findings.check("R-RND-3", not stray, "it sent an update for the offer that another one had replaced")
    await say_farewell(play, talk)


async def _cancel_of_another(play: Play) -> None:
    talk = await join(play)
    await talk.agree(2)
    await talk.say(cancel=negotiation_pb2.Cancellation(offer_id=offer_id(1), reason="an old one"))
    await play.delivered(2, "R-RND-6")
    await say_farewell(play, talk)


async def _drained_in_training(play: Play) -> None:
    talk = await _in_endless_training(play)
    await talk.cancel()
    await say_farewell(play, talk)


async def _short_lease(play: Play) -> None:
    talk = await _in_endless_training(play, _LEASE_SECONDS)
    begun = asyncio.get_running_loop().time()
    await play.rests(3 * _LEASE_SECONDS)
    signs = [begun, *(at for at in play.transfer.signs if at > begun), asyncio.get_running_loop().time()]
    longest = max(later - earlier for earlier, later in pairwise(signs))
    words = f"{longest:.1f} s without a sign of life in a lease of {_LEASE_SECONDS:g} s"
    play.findings.check("R-RND-10", longest <= _LEASE_SECONDS, words)
    await talk.cancel()
    await _goes_on(play, talk, "after cancel")


async def _slow_network(play: Play) -> None:
    """Everything takes several leases."""
    play.transfer.read_seconds = 0.3
    talk = await join(play)
    await talk.agree(lease=_LEASE_SECONDS)
    begun = asyncio.get_running_loop().time()
    await play.delivered(within=60)
    signs = [begun, *(at for at in play.transfer.signs if at > begun), asyncio.get_running_loop().time()]
    longest = max(later - earlier for earlier, later in pairwise(signs))
    words = f"on a slow line {longest:.1f} s without a sign of life in a lease of {_LEASE_SECONDS:g} s"
    play.findings.check("R-RND-10", longest <= _LEASE_SECONDS, words)
    play.transfer.read_seconds = 0
    await say_farewell(play, talk)


async def _counter_offer(play: Play) -> None:
    await play.begin(limited=True)
    talk = await play.session("R-HEL-2")
    await talk.welcome()
    plan = replace(play.material.plan, epochs=50)
    await talk.offer(plan=plan)
    counter = await talk.hear("counter_offer", "R-RND-1")
    play.findings.check("R-RND-1", counter.epochs == 1, f"limited to one epoch, it asked for {counter.epochs}")
    await talk.confirm(plan=replace(plan, epochs=counter.epochs or 1))
    await play.delivered()
    ran = play.transfer.uploads[upload_id(1)].announced.header.epochs
    play.findings.check("R-RND-2", ran <= 1, f"one epoch was agreed, and it ran {ran}")
    await say_farewell(play, talk)


async def _counter_offer_refused(play: Play) -> None:
    await play.begin(limited=True)
    talk = await play.session("R-HEL-2")
    await talk.welcome()
    await talk.offer(plan=replace(play.material.plan, epochs=50))
    await talk.hear("counter_offer", "R-RND-1")
    await talk.say(withdraw=negotiation_pb2.Withdrawal(offer_id=offer_id(1), reason="the plan is the plan"))
    await _goes_on(play, talk, "after its counter-offer was not granted", replace(play.material.plan, epochs=1).epochs)


async def _in_endless_training(play: Play, lease: float = 30.0) -> Talk:
    """A client that trains, and would for a very long time."""
    talk = await join(play)
    await talk.agree(plan=replace(play.material.plan, epochs=_ENDLESS_EPOCHS), lease=lease)
    signs = play.transfer.signs
    await play.until(lambda: len(signs) > 0, "R-RND-10", "no progress came while it trained", lease)
    await play.rests(0.3)
    return talk


async def _goes_on(play: Play, talk: Talk, when: str, epochs: int = 2) -> None:
    """See that nothing more comes for offer 1, and that the next one is done."""
    play.transfer.terms.closed.add(upload_id(1))
    await play.rests(_GRACE_SECONDS)
    quiet_from = asyncio.get_running_loop().time()
    await play.rests(1.0)
    late = [kind for at, kind, content in talk.heard if at > quiet_from and _is_about(content, offer_id(1))]
    late += [one.name for one in play.transfer.calls if one.subject == upload_id(1) and one.at > quiet_from]
    play.findings.check("R-RND-6", not late, f"{when} it still sent {', '.join(sorted(set(late)))}")
    stray = play.transfer.count("PutManifest", upload_id(1))
    play.findings.check("R-RND-6", not stray, f"{when} it sent an update for the offer")
    await talk.agree(2, plan=replace(play.material.plan, epochs=epochs), rule="R-RND-6")
    await play.delivered(2, "R-RND-6")
    await say_farewell(play, talk)


def _is_about(content: object, offer: str) -> bool:
    return getattr(content, "offer_id", None) == offer


SCENES = (
    Scene("cut off after accepting an offer", _cut_when_offered),
    Scene("cut off after confirm", _cut_when_confirmed),
    Scene("cut off after delivering", _cut_when_delivered),
    Scene("offered again after delivering", _lost_after_delivery),
    Scene("confirmed twice", _confirmed_twice),
    Scene("cancelled while it trains", _cancelled_in_training),
    Scene("withdrawn after accepting", _withdrawn),
    Scene("another offer while it downloads", _another_offer_in_download),
    Scene("another offer while it trains", _another_offer_in_training),
    Scene("a cancel for another offer", _cancel_of_another),
    Scene("drained while it trains", _drained_in_training),
    Scene("a short lease", _short_lease),
    Scene("a slow network", _slow_network),
    Scene("a counter-offer that is granted", _counter_offer),
    Scene("a counter-offer that is refused", _counter_offer_refused),
)
