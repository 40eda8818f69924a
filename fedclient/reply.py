"""What to answer to an offer: a pure decision from the offer, the site's limits and what the site has measured."""

from __future__ import annotations

from dataclasses import dataclass

from fedclient.events import Offer

SAFETY = 1.2
"""Epochs vary with what else a machine does; asking for a fifth more than was measured costs the round little."""


@dataclass(frozen=True, slots=True)
class SiteLimits:
    """What a site allows in one round, and `max_rounds` rounds in all. 0 and `None` are no limit."""

    max_epochs: int = 0
    max_training_seconds: float | None = None
    max_rounds: int = 0

    def are_used_up(self, rounds_sent: int) -> bool:
        """Whether updates of as many rounds have left the site as may."""
        return 0 < self.max_rounds <= rounds_sent

    def agreed_epochs(self, offer: Offer, reply: Reply) -> int:
        """How many epochs may be trained for an offer that was answered so; 0 for none."""
        if isinstance(reply, Decline):
            return 0
        countered = reply.epochs if isinstance(reply, Counter) else 0
        return min(offer.plan.epochs, countered or offer.plan.epochs)


@dataclass(frozen=True, slots=True)
class Experience:
    """What earlier rounds took at this site, in seconds; `epoch_seconds` is `None` before the first.

    `transfer_seconds` is download and upload together. `more_time_refused` says that the server once withdrew an offer
    for which the client had asked for more time. `rounds_sent` counts the updates that were sent, or begun to be, one a
    round. `misfits` counts the offers in a row, since the last delivery, for which one epoch seemed to take too long.
    """

    epoch_seconds: float | None = None
    transfer_seconds: float = 0.0
    more_time_refused: bool = False
    rounds_sent: int = 0
    misfits: int = 0

    def is_worth_a_try(self) -> bool:
        """Whether to doubt the measures: who always declines never measures again, and they may be of one bad day, or
        of a machine and data that were others.

        With the second misfit, the fourth, the eighth and so on: a round may wait in vain for who is as slow as it was.
        """
        return self.misfits > 0 and self.misfits & (self.misfits + 1) == 0


@dataclass(frozen=True, slots=True)
class Accept:
    """The offer is fine as it stands."""


@dataclass(frozen=True, slots=True)
class Decline:
    """Not this round. `misfit` says that its time, or what the site allows, seems too short for one epoch."""

    reason: str
    misfit: bool = False


@dataclass(frozen=True, slots=True)
class Counter:
    """Other terms: `epochs` at most (0 to leave the plan's), `seconds_needed` from now in all (`None` to leave it).

    `misfit` says that the time seems too short for one epoch, which is tried all the same.
    """

    epochs: int
    seconds_needed: float | None
    reason: str
    misfit: bool = False


Reply = Accept | Decline | Counter


def answer(offer: Offer, limits: SiteLimits, experience: Experience) -> Reply:
    """Accept, or counter with the fewest changes that make the offer fit, or decline if nothing can."""
    if limits.are_used_up(experience.rounds_sent):
        return Decline(f"this site takes part in at most {limits.max_rounds} rounds")
    planned = offer.plan.epochs
    epochs, reasons = planned, []
    if limits.max_epochs and epochs > limits.max_epochs:
        epochs = limits.max_epochs
        reasons.append(f"this site allows at most {epochs} epochs a round")
    epoch_seconds = experience.epoch_seconds
    if epoch_seconds is None:
        return _counter(epochs, planned, None, reasons)
    if limits.max_training_seconds is not None:
        affordable = int(limits.max_training_seconds // epoch_seconds)
        if affordable < 1 and experience.is_worth_a_try():  # the limit on time ends it, if need be
            return Counter(1, None, "one epoch is tried, though it seems to take longer than allowed here", misfit=True)
        if affordable < 1:
            return Decline("one epoch takes longer than this site allows", misfit=True)
        if affordable < epochs:
            epochs = affordable
            reasons.append(f"this site allows {limits.max_training_seconds:.0f} s of training a round")
    return _fit_time(offer, epochs, epoch_seconds, experience, reasons)


def _fit_time(offer: Offer, epochs: int, epoch_seconds: float, experience: Experience, reasons: list[str]) -> Reply:
    needed = epochs * epoch_seconds * SAFETY + experience.transfer_seconds
    if needed <= offer.time_remaining_seconds:
        return _counter(epochs, offer.plan.epochs, None, reasons)
    if not experience.more_time_refused:
        reasons.append(f"{epochs} epochs take about {needed:.0f} s here")
        return _counter(epochs, offer.plan.epochs, needed, reasons)
    # The server would not wait longer the last time: fewer epochs in time are worth more than another withdrawal.
    fitting = int((offer.time_remaining_seconds - experience.transfer_seconds) // (epoch_seconds * SAFETY))
    if fitting < 1 and experience.is_worth_a_try():
        return Counter(1, None, "one epoch is tried, though it seems not to fit the time that remains", misfit=True)
    if fitting < 1:
        return Decline("not even one epoch fits the time that remains", misfit=True)
    reasons.append(f"{fitting} epochs fit the time that remains")
    return _counter(fitting, offer.plan.epochs, None, reasons)


def _counter(epochs: int, planned: int, seconds_needed: float | None, reasons: list[str]) -> Reply:
    if epochs == planned and seconds_needed is None:
        return Accept()
    return Counter(0 if epochs == planned else epochs, seconds_needed, "; ".join(reasons))
