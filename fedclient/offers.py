"""Offers, of which a client works on one at a time: what it answers, and the job for it. They outlive their streams."""

from __future__ import annotations

from dataclasses import replace

import structlog

from fedclient.events import Confirmation, Offer, Welcome
from fedclient.exit_codes import ExitCode, Stop, refused
from fedclient.job import Job, JobState
from fedclient.reply import Accept, Counter, Decline, Reply, SiteLimits, answer
from fedclient.tools import Tools
from fedclient.upload import Terms

log = structlog.get_logger()

_MAX_FAILURES = 3
"""Failed trainings in a row after which a person should have a look."""


class Offers:
    """Answers offers, and has a job carry out what is agreed.

    Args:
        tools: what the jobs work with.
        limits: what the site allows.
    """

    def __init__(self, tools: Tools, limits: SiteLimits) -> None:
        self._tools = tools
        self._limits = limits
        self._terms: Terms | None = None
        self._reply: Reply = Accept()
        self._asked_for_time = False
        self._failures = 0
        self.job: Job | None = None

    def welcome(self, welcome: Welcome) -> None:
        """Take the terms of a new session."""
        self._terms = Terms(welcome.max_chunk_bytes, welcome.window_bytes, welcome.encoding)

    async def consider(self, offer: Offer) -> Reply:
        """What to answer to an offer. One that is being worked on, or trained for, is accepted as it stands.

        One that was dropped comes again when a server was asked too early after its restart, and one that was delivered
        when the server has found what it had of the update to be damaged: it is taken up anew, and sent from disk.
        """
        job = self.job
        is_over = job is not None and job.state in (JobState.DROPPED, JobState.DELIVERED)
        if job is not None and job.offer.offer_id == offer.offer_id and not is_over:
            return self._answer_again(job)
        if job is not None:
            job.drop("another offer came")
        self.job = job = Job(offer, self._tools)
        self._tools.keepsakes.work_begins()  # not only when training does: a call of the worker may take seconds
        memory = self._tools.memory
        trained = await job.trained()
        is_used_up = self._limits.are_used_up(memory.experience.rounds_sent)
        if trained is not None and (memory.has_sent(trained.fingerprint) or not is_used_up):
            self._reply = Accept()
            return self._reply
        reply = self._reply = answer(offer, self._limits, memory.experience)
        if isinstance(reply, Decline | Counter) and reply.misfit:
            memory.learn(replace(memory.experience, misfits=memory.experience.misfits + 1))
        self._asked_for_time = isinstance(reply, Counter) and reply.seconds_needed is not None
        if isinstance(reply, Decline):
            self._tools.keepsakes.work_ends()
        _log_reply(offer, reply)
        return reply

    def _answer_again(self, job: Job) -> Reply:
        if job.state is JobState.FAILED:
            return Decline(job.reason)
        return self._reply if job.state is JobState.OFFERED else Accept()

    def confirm(self, confirmation: Confirmation) -> None:
        """Begin, or go on with, what was agreed."""
        job = self._job_of(confirmation.offer_id)
        if job is None or self._terms is None:
            return
        agreed, confirmed = self._limits.agreed_epochs(job.offer, self._reply), confirmation.plan.epochs
        if confirmed <= agreed:
            most = self._limits.max_epochs or confirmed  # what is trained already was by an earlier agreement
            job.start(replace(confirmation.plan, epochs=min(confirmed, most)), self._terms)
        else:
            log.error("the server goes by other terms than were agreed on", epochs=confirmed, agreed=agreed)
            job.refuse(f"{confirmed} epochs were confirmed, and {agreed} agreed on")

    def withdraw(self, offer_id: str, reason: str) -> None:
        """The server takes an offer back. Of one that is over, that refuses nothing: the answer came too late."""
        job = self._job_of(offer_id)
        if self._asked_for_time and job is not None and job.state is JobState.OFFERED:
            memory = self._tools.memory
            memory.learn(replace(memory.experience, more_time_refused=True))
        self.cancel(offer_id, reason)

    def cancel(self, offer_id: str, reason: str) -> None:
        """Stop working on an offer."""
        job = self._job_of(offer_id)
        if job is not None and job.state in (JobState.OFFERED, JobState.WORKING):
            log.info("the server does not want this round's update", because=reason, round=job.offer.round)
            job.drop(reason)

    def enough(self) -> str | None:
        """Why this site takes part no longer, once the last round that it allows is done; `None` while it does."""
        at_work = self.job is not None and self.job.state is JobState.WORKING
        if at_work or not self._limits.are_used_up(self._tools.memory.experience.rounds_sent):
            return None
        return f"this site takes part in at most {self._limits.max_rounds} rounds"

    def check_health(self) -> None:
        """Call after a job has ended, as often as wanted.

        Raises:
            Stop: with `UNTRUSTED`, the server does not take this site any more; with `TRAINING_FAILED`, too many
                fine-tunes in a row have failed.
        """
        job = self.job
        if job is None or job.state not in (JobState.DELIVERED, JobState.FAILED):
            return
        if job.refusal is not None:
            raise refused(job.refusal)
        if job.state is JobState.DELIVERED:
            self._failures = 0
        if not job.training_failed:
            return
        job.training_failed = False  # counted
        self._failures += 1
        if self._failures >= _MAX_FAILURES:
            message = f"local training failed {self._failures} times in a row ({job.reason}); the log says why"
            raise Stop(ExitCode.TRAINING_FAILED, message)

    async def close(self) -> None:
        """Drop what is being done, and wait until it is."""
        if self.job is not None:
            self.job.drop("the client stops")
            await self.job.stopped()

    def _job_of(self, offer_id: str) -> Job | None:
        return self.job if self.job is not None and self.job.offer.offer_id == offer_id else None


def _log_reply(offer: Offer, reply: Reply) -> None:
    facts = {"round": offer.round, "epochs": offer.plan.epochs, "seconds": round(offer.time_remaining_seconds)}
    match reply:
        case Accept():
            log.info("offer accepted", **facts)
        case Decline(reason):
            log.info("offer declined", because=reason, **facts)
        case Counter(epochs, seconds_needed, reason):
            log.info("counter-offer", our_epochs=epochs, our_seconds=seconds_needed, because=reason, **facts)
