"""The work on one offer, from the base model to the acknowledged update. It outlives the streams it is agreed on.

    OFFERED --confirm--> WORKING --acknowledged--> DELIVERED
    OFFERED, WORKING --cancel, withdraw, another offer--> DROPPED
    WORKING --the server does not want the update any more--> DROPPED
    WORKING --cannot be done--> FAILED
    OFFERED --confirmed on other terms than agreed--> FAILED

An offer that comes again after its job was DELIVERED or DROPPED gets a new job, which finds on disk what was trained.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from fedclient.calls import until_done
from fedclient.download import ForeignModel
from fedclient.events import Offer
from fedclient.full_disk import disk_words, when_the_disk_can
from fedclient.models import LocalModel
from fedclient.pace import Pace, TransferTime
from fedclient.requests import parcel_of
from fedclient.tools import Tools
from fedclient.training import TrainingFailed
from fedclient.updates import FinishedUpdate
from fedclient.upload import Delivery, Terms, UpdateUnwanted, Upload, is_admitted
from fedstream.encodings import Encoding
from fedstream.errors import (
    DigestMismatch,
    FedstreamError,
    PermissionDenied,
    ProtocolError,
    Unauthenticated,
    UnknownModel,
)
from fedstream.plan import Plan
from fedstream.progress import Phase, Progress
from fedstream.sizes import part_of
from fedtask.messages import LocalUpdate
from fedtask.task import EpochReport

log = structlog.get_logger()
T = TypeVar("T")

_WAITING = "what was trained waits for the disk"


class JobState(enum.Enum):
    """Where the work on an offer is; the module's docstring has the legal transitions."""

    OFFERED = "offered"
    WORKING = "working"
    DELIVERED = "delivered"
    FAILED = "failed"
    DROPPED = "dropped"


@dataclass(slots=True)
class Job:
    """The work on one offer. `reason` says why it failed or was dropped, in words that may be told to the server.

    `refusal` is what it failed with where the server does not take this site any more.
    """

    offer: Offer
    tools: Tools
    state: JobState = JobState.OFFERED
    reason: str = ""
    training_failed: bool = False
    refusal: ProtocolError | None = None
    progress: Progress = field(default_factory=lambda: Progress(Phase.DOWNLOADING))
    _pace: Pace = field(default_factory=Pace, repr=False)
    _task: asyncio.Task[None] | None = field(default=None, repr=False)

    async def trained(self) -> FinishedUpdate | None:
        """The fine-tune of this offer, if it is done and on disk, by this process or an earlier one.

        `None` as well where the disk cannot say: the job itself waits for it.
        """
        try:
            return await asyncio.to_thread(self._load_finished)
        except OSError as error:
            log.warning("whether this round is trained already cannot be read now", because=str(error))
            return None

    def _load_finished(self) -> FinishedUpdate | None:
        finished = self.tools.updates.load(self.offer.offer_id)
        return finished if finished is not None and finished.base == self.offer.base.digest else None

    def start(self, plan: Plan, terms: Terms) -> None:
        """Begin, once the server has confirmed the offer. Nothing happens if it has begun already."""
        if self.state is JobState.OFFERED:
            self.state = JobState.WORKING
            self._task = asyncio.create_task(self._run(plan, terms), name=f"round {self.offer.round}")
            self._task.add_done_callback(self._check_end)

    def refuse(self, reason: str) -> None:
        """Do not begin, and say so. Nothing happens if it has begun."""
        if self.state is JobState.OFFERED:
            self._end(JobState.FAILED, reason)

    def drop(self, reason: str) -> None:
        """Stop: the server does not want it any more. A job that has ended stays as it is."""
        if self.state in (JobState.OFFERED, JobState.WORKING):
            self._end(JobState.DROPPED, reason)
            if self._task is not None:
                self._task.cancel()

    async def stopped(self) -> None:
        """Wait until nothing runs any more, after `drop`."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def _check_end(self, task: asyncio.Task[None]) -> None:
        """See to it that no job is taken to be at work, and its lease kept, after its task has died of a defect."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a defect ended the work on this round", round=self.offer.round, exc_info=error)
            self._end(JobState.FAILED, "the client had an unexpected error")

    def _end(self, state: JobState, reason: str = "") -> None:
        self.state, self.reason = state, reason
        if self._pace.epoch_seconds is not None:
            # Stopped in training. The next offer, which may come at once, is answered by what this one taught, such as
            # that ten epochs take too long here.
            self._learn(epoch_seconds=self._pace.epoch_seconds)
            try:
                self.tools.memory.save()
            except OSError as error:
                log.warning("how long an epoch takes here could not be saved", because=str(error))
        self.tools.keepsakes.work_ends()
        self.tools.on_news()

    async def _run(self, plan: Plan, terms: Terms) -> None:
        structlog.contextvars.bind_contextvars(round=self.offer.round)
        try:
            # A fine-tune that was dropped may still be writing what another job would clear away under its hands.
            async with self.tools.turn:
                delivery = await self._work(plan, terms)
        except UpdateUnwanted as error:
            log.info("the update is not wanted any more", because=str(error))
            self._end(JobState.DROPPED, str(error))
        except TrainingFailed as error:
            self.training_failed = True
            self._end(JobState.FAILED, str(error))
        except (FedstreamError, OSError) as error:
            log.error("the work on this round failed", because=self._words(error))
            if isinstance(error, Unauthenticated | PermissionDenied):
                self.refusal = error
            self._end(JobState.FAILED, _general_words(error))
        else:
            if delivery.quarantined:
                log.warning("update delivered, but kept aside by the server", because=delivery.quarantined)
            else:
                log.info("update delivered")
            self._end(JobState.DELIVERED)

    def _words(self, error: Exception) -> str:
        """What happened, for people at this site."""
        if not isinstance(error, OSError):
            return str(error)
        words = disk_words(error, self.tools.updates.weights_path(self.offer.offer_id).parent)
        return f"{words}. This site goes on with the next round"

    async def _work(self, plan: Plan, terms: Terms) -> Delivery:
        tools = self.tools
        kept = await self._kept()
        await self._settle_earlier_updates()
        await _to_its_end(partial(tools.updates.keep_only, {self.offer.offer_id, *tools.keepsakes.offers}))
        downloading, uploading = TransferTime(), TransferTime()
        base = await self._fetch_base(terms, downloading)
        finished = await self._train(base, plan, kept)
        try:
            delivery = await self._upload(base, finished, terms, uploading)
        except DigestMismatch:
            await _to_its_end(partial(tools.packer.discard, self.offer.offer_id))
            kept = await self._kept()
            if kept is not None and terms.encoding is Encoding.RAW:
                raise  # what is on disk is what was trained: the damage is not here
            uploading = TransferTime()
            delivery = await self._upload(base, await self._train(base, plan, kept), terms, uploading)
        if not delivery.quarantined:
            await _to_its_end(partial(tools.packer.delivered, self.offer.offer_id))
        self._learn(transfer_seconds=downloading.seconds + uploading.seconds)
        return delivery

    async def _kept(self) -> FinishedUpdate | None:
        """What was trained for this offer before. A disk of the network that is away may have it, and is waited for."""
        return await when_the_disk_can(lambda: asyncio.to_thread(self._load_finished), _WAITING)

    async def _settle_earlier_updates(self) -> None:
        """Ask of updates that were sent and not heard of again, as by a client that was killed just then.

        What an encoding left out of one is added to the next, once the server has it: else it were added twice.
        """
        packer = self.tools.packer
        for offer_id, upload_id in await asyncio.to_thread(packer.unsettled):
            if offer_id == self.offer.offer_id:
                continue
            ask = partial(is_admitted, self.tools.connection, upload_id)
            with contextlib.suppress(ProtocolError, OSError):  # the server does not know it, or the disk refuses
                if await until_done(ask, lambda: 0, self.tools.patience, "asking of an earlier update"):
                    await _to_its_end(partial(packer.delivered, offer_id))

    async def _fetch_base(self, terms: Terms, moving: TransferTime) -> LocalModel:
        def on_bytes(done: int, total: int) -> None:
            moving.note(done)
            fraction = done / total if total else 1.0
            self._show(Progress(Phase.DOWNLOADING, fraction=fraction), part_of(done, total))

        tools, digest = self.tools, self.offer.base.digest
        self._show(Progress(Phase.DOWNLOADING))
        base = await tools.downloader.fetch(digest, tools.site.description.schema, terms.max_chunk_bytes, on_bytes)
        await tools.global_models.keep_only(lambda: {digest, *tools.keepsakes.bases})
        return base

    async def _train(self, base: LocalModel, plan: Plan, kept: FinishedUpdate | None) -> FinishedUpdate:
        """Fine-tune, or take what was trained for this offer before; then see to what is kept of it for people."""
        tools = self.tools
        if kept is None:
            finished = await self._train_anew(base, plan)
        else:
            finished = kept
            log.info("this round is trained already; sending what was kept")
        # After a restart as well: the process that trained may have ended before it came to this.
        await tools.keep(base, finished)
        return finished

    async def _train_anew(self, base: LocalModel, plan: Plan) -> FinishedUpdate:
        tools, offer = self.tools, self.offer
        self._show(Progress(Phase.PREPARING, epochs=plan.epochs))
        log.info("training", epochs=plan.epochs, batch_size=plan.batch_size, learning_rate=plan.learning_rate)
        update = await self._fine_tune(base, plan, tools.updates.weights_path(offer.offer_id))
        record = partial(tools.updates.record, offer.offer_id, offer.round, base.digest, update)
        finished = await when_the_disk_can(lambda: _to_its_end(record), _WAITING)
        log.info("trained", epochs=update.epochs, seconds=round(update.training_seconds, 1), **_shown(update.metrics))
        if missing := tools.reporting.missing(update.metrics):
            log.warning(
                "--report names metrics that this fine-tune did not give", names=missing, gave=list(update.metrics)
            )
        return finished

    async def _fine_tune(self, base: LocalModel, plan: Plan, out: Path) -> LocalUpdate:
        def on_report(report: EpochReport) -> None:
            phase = Phase.PREPARING if report.phase.startswith("prepar") else Phase.TRAINING
            if phase is Phase.TRAINING:
                self._pace.note(report, time.monotonic())
            self._show(Progress(phase, report.epoch, report.epochs, report.fraction, dict(report.metrics)))

        self._pace = Pace()
        update = await self.tools.trainer.fine_tune(base.path, plan, out, on_report)
        # The whole has preparation in it. It is all there is where a task reports too little.
        measured, self._pace = self._pace.epoch_seconds, Pace()
        self._learn(epoch_seconds=update.training_seconds / max(update.epochs, 1) if measured is None else measured)
        return update

    async def _upload(self, base: LocalModel, finished: FinishedUpdate, terms: Terms, moving: TransferTime) -> Delivery:
        def on_bytes(done: int, total: int) -> None:
            moving.note(done)
            fraction = done / total if total else 1.0
            self._show(Progress(Phase.UPLOADING, fraction=fraction), part_of(done, total))

        update = finished.update
        pack = partial(self.tools.packer.pack, base, finished, terms.encoding, self.offer.upload_id)
        packed = await when_the_disk_can(lambda: _to_its_end(pack), _WAITING)
        parcel = parcel_of(
            self.offer.upload_id, update, packed.manifest, packed.spans, packed.encoded, self.tools.reporting
        )
        self._show(Progress(Phase.UPLOADING))
        self.tools.memory.note_sent(finished.fingerprint)
        await when_the_disk_can(lambda: _to_its_end(self.tools.memory.save), _WAITING)
        upload = Upload(self.tools.connection, parcel, terms, self.tools.patience, on_bytes)
        return await upload.run()

    def _learn(self, epoch_seconds: float | None = None, transfer_seconds: float | None = None) -> None:
        memory = self.tools.memory
        known = memory.experience
        memory.learn(
            replace(
                known,
                epoch_seconds=known.epoch_seconds if epoch_seconds is None else epoch_seconds,
                transfer_seconds=known.transfer_seconds if transfer_seconds is None else transfer_seconds,
                misfits=known.misfits if transfer_seconds is None else 0,
            )
        )

    def _show(self, progress: Progress, note: str = "") -> None:
        moved_on = (progress.phase, progress.epoch) != (self.progress.phase, self.progress.epoch)
        # The person at the site sees all; what is told to the server is taken from here.
        self.progress = replace(progress, metrics=self.tools.reporting.filtered(progress.metrics))
        self.tools.display.show(self.offer.round, progress, note)
        if moved_on:
            self.tools.on_news()


async def _to_its_end(write: Callable[[], T]) -> T:
    """Write in a thread. A job that is dropped meanwhile has ended when the thread has, and no other begins before."""
    writing = asyncio.ensure_future(asyncio.to_thread(write))
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.gather(writing, return_exceptions=True)
        raise


def _general_words(error: Exception) -> str:
    """A reason that may leave this site: no file names, no paths."""
    if isinstance(error, UnknownModel):
        return "the base model is not published any more"
    if isinstance(error, ForeignModel):
        return "the base model is not of the schema that was agreed on"
    if isinstance(error, ProtocolError):
        return f"the server refused a call: {error.reason}"
    if isinstance(error, OSError):
        return "the site's disk could not be written or read"
    return "the transfer of weights failed"


def _shown(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in metrics.items() if value is not None}
