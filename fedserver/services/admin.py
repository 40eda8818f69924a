"""The AdminService: what an operator sees and steers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from fedserver.coordinator.participation import OutcomeCounts, Participation
from fedserver.coordinator.population import Client, ClientState
from fedserver.coordinator.round import Round
from fedserver.federation import Federation, FederationState
from fedserver.office import Office
from fedserver.services import messages
from fedserver.services.calls import Context, translates_errors
from fedserver.services.round_messages import write_detail, write_records
from fedserver.store.rounds import late_updates
from fedserver.upkeep import keep_last_round, keep_pause
from fedstream import wire
from fedstream.errors import InvalidRequest, UnknownRound, WrongState
from fedstream.v1 import admin_pb2, admin_pb2_grpc, negotiation_pb2
from fedtask.report import RoundRecord

_FEDERATION_STATES = {
    state: admin_pb2.FederationState.Value(f"FEDERATION_STATE_{state.name}") for state in FederationState
}
_BEFORE_A_PAUSE = (FederationState.PREPARING, FederationState.WAITING, FederationState.RUNNING)
_LONGEST_SECONDS = 10 * 366 * 86_400
_PAGE_SIZE, _MAX_PAGE_SIZE = 100, 1_000


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Looks at a federation and steers it."""

    def __init__(self, federation: Federation, office: Office | None = None) -> None:
        self.federation = federation
        self._office = office

    @translates_errors
    async def GetState(self, _request: admin_pb2.GetStateRequest, _context: Context) -> admin_pb2.GetStateResponse:
        """The federation's state and what it waits for."""
        federation, standing = self.federation, self.federation.standing
        best = federation.scoreboard.best
        response = admin_pb2.GetStateResponse(
            federation_name=federation.config.name,
            state=_FEDERATION_STATES[standing.state],
            reason=self._reason(),
            since=messages.write_instant(federation.clock, standing.since),
            rounds=federation.config.rounds,
            best_round=best.version if best is not None else 0,
            clients_connected=len(federation.idle),
            min_clients=federation.config.min_clients,
            started=messages.write_unix_time(federation.started),
        )
        latest = self._latest()
        if latest is not None:
            response.round.CopyFrom(latest)
        if federation.model_ref is not None:
            response.global_model.CopyFrom(wire.write_model_ref(federation.model_ref))
        if (remaining := self._expected_seconds()) is not None:
            response.expected_remaining.FromTimedelta(timedelta(seconds=remaining))
        return response

    def _expected_seconds(self) -> float | None:
        federation, at_work = self.federation, self.federation.round_at_work
        if at_work is None or federation.paused or federation.stop_requested.is_set():
            return None
        rounds_after = federation.config.rounds - at_work.number
        return federation.pace.expected_seconds(rounds_after, federation.now - at_work.opened)

    def _reason(self) -> str:
        """What is waited for; and that a stop or a pause was asked for, where a round is at work before it comes."""
        standing = self.federation.standing
        if self.federation.stop_requested.is_set() and self.federation.round_at_work is not None:
            return f"{standing.reason}; after this round the federation ends"
        if self.federation.paused and standing.state in _BEFORE_A_PAUSE:
            return f"{standing.reason}; paused: no further round opens until `fedserver resume`"
        return standing.reason

    def _latest(self) -> admin_pb2.Round | None:
        live = self.federation.round_at_work
        if live is not None:
            return self._write_live(live)
        written = self._write_over(self.federation.history[-1:])
        return written[0] if written else None

    @translates_errors
    async def ListRounds(self, request: admin_pb2.ListRoundsRequest, _context: Context) -> admin_pb2.ListRoundsResponse:
        """All rounds, in pages."""
        start = _read_token(request.page_token)
        size = min(request.page_size or _PAGE_SIZE, _MAX_PAGE_SIZE)
        # In a thread: a hundred rounds of a thousand sites, and their ledger's entries, take a second to read.
        rounds = await asyncio.to_thread(lambda: self._write_over(self.federation.history[start : start + size]))
        more = start + size < len(self.federation.history)
        live = self.federation.round_at_work
        if live is not None and not more:
            rounds.append(self._write_live(live))
        return admin_pb2.ListRoundsResponse(rounds=rounds, next_page_token=str(start + size) if more else "")

    @translates_errors
    async def GetRound(self, request: admin_pb2.GetRoundRequest, _context: Context) -> admin_pb2.GetRoundResponse:
        """One round and its clients."""
        live = self.federation.round_at_work
        database = self.federation.state.database
        if live is not None and request.number in (0, live.number):
            late = late_updates(database, live.number)
            parts = [self._write_participation(part) for part in live.participations]
            for part, message in zip(live.participations, parts, strict=True):
                message.late_update = late.get(part.rank, "")
            return admin_pb2.GetRoundResponse(round=self._write_live(live), participations=parts)
        record = self.federation.history.of_number(request.number)
        if record is not None:
            return await asyncio.to_thread(write_detail, database, record)
        raise UnknownRound(f"there is no round {request.number or 'yet'}", round=request.number)

    @translates_errors
    async def ListClients(
        self, _request: admin_pb2.ListClientsRequest, _context: Context
    ) -> admin_pb2.ListClientsResponse:
        """Every client the server has met."""
        return admin_pb2.ListClientsResponse(clients=[self._write_client(one) for one in self.federation.population])

    @translates_errors
    async def Pause(self, _request: admin_pb2.PauseRequest, _context: Context) -> admin_pb2.PauseResponse:
        """Opens no further round."""
        self.federation.pause()
        await keep_pause(self.federation)
        return admin_pb2.PauseResponse()

    @translates_errors
    async def Resume(self, _request: admin_pb2.ResumeRequest, _context: Context) -> admin_pb2.ResumeResponse:
        """Takes a pause back."""
        self.federation.resume()
        await keep_pause(self.federation)
        return admin_pb2.ResumeResponse()

    @translates_errors
    async def Stop(self, request: admin_pb2.StopRequest, _context: Context) -> admin_pb2.StopResponse:
        """Ends the federation."""
        self.federation.stop(finish_round=request.finish_round)
        if request.finish_round:
            await keep_last_round(self.federation)
        return admin_pb2.StopResponse()

    @translates_errors
    async def Invite(self, request: admin_pb2.InviteRequest, _context: Context) -> admin_pb2.InviteResponse:
        """Makes a join token."""
        office = self._require_office()
        token, expires = await office.invite(request.client_name, _read_valid_for(request))
        response = admin_pb2.InviteResponse(
            token=token, server_address=office.advertised.server, enrolment_address=office.advertised.enrolment
        )
        response.expires.FromDatetime(expires)
        return response

    @translates_errors
    async def RevokeSite(self, request: admin_pb2.RevokeSiteRequest, _context: Context) -> admin_pb2.RevokeSiteResponse:
        """Keeps a site out."""
        revoked = await self._require_office().membership.revoke(request.client_name)
        return admin_pb2.RevokeSiteResponse(certificates=revoked.certificates, invitations=revoked.invitations)

    def _require_office(self) -> Office:
        if self._office is None:
            message = (
                "this server was started with --plaintext or --open-enrolment and asks its sites for no certificates: "
                "start it without, to invite sites or to keep them out"
            )
            raise WrongState(message, state="open")
        return self._office

    def _write_over(self, records: Sequence[RoundRecord]) -> list[admin_pb2.Round]:
        return write_records(self.federation.state.database, records)

    def _write_live(self, round_: Round) -> admin_pb2.Round:
        clock = self.federation.clock
        return admin_pb2.Round(
            number=round_.number,
            phase=admin_pb2.RoundPhase.Value(f"ROUND_PHASE_{self.federation.phase.upper()}"),
            succeeded=round_.closed is not None and round_.succeeded,
            reason=self.federation.standing.reason,
            opened=messages.write_instant(clock, round_.opened),
            deadline=messages.write_instant(clock, round_.deadline),
            base_model=wire.write_model_ref(round_.base),
            counts=write_counts(round_.counts),
            bytes_received=self.federation.traffic.received,
            bytes_sent=self.federation.traffic.sent,
        )

    def _write_participation(self, part: Participation) -> admin_pb2.Participation:
        clock, told = self.federation.clock, part if part.metrics else part.progress
        return admin_pb2.Participation(
            client_name=part.client,
            rank=part.rank,
            outcome=messages.OUTCOMES[part.outcome] if part.outcome else negotiation_pb2.OUTCOME_UNSPECIFIED,
            reason=part.reason or part.stage.value,
            phase=wire.write_phase(part.progress.phase),
            epoch=part.progress.epoch,
            epochs=part.plan.epochs,
            fraction=part.progress.fraction,
            committed_size=part.committed_size,
            body_size_bytes=part.body_size_bytes,
            last_seen=messages.write_instant(clock, part.last_seen) if part.heard else None,
            num_examples=part.num_examples,
            weight=part.weight,
            metrics=wire.write_metrics(told.metrics, told.undefined),
            duration=messages.write_duration((part.ended_at or clock.monotonic()) - part.offered_at),
        )

    def _write_client(self, client: Client) -> admin_pb2.Client:
        return admin_pb2.Client(
            name=client.name,
            state=self._client_state(client),
            reason=client.reason,
            num_examples=client.introduction.num_examples,
            first_seen=messages.write_unix_time(client.first_seen),
            last_seen=messages.write_unix_time(client.last_seen),
            rounds_completed=client.rounds_completed,
            software=client.introduction.software,
        )

    def _client_state(self, client: Client) -> admin_pb2.ClientState.ValueType:
        if client.state is not ClientState.CONNECTED:
            return admin_pb2.ClientState.Value(f"CLIENT_STATE_{client.state.name}")
        live = self.federation.round_at_work
        part = live.of_client(client.name) if live is not None else None
        working = part is not None and part.is_outstanding
        return admin_pb2.CLIENT_STATE_WORKING if working else admin_pb2.CLIENT_STATE_IDLE


def _read_token(token: str) -> int:
    if not token:
        return 0
    if not (token.isascii() and token.isdecimal() and len(token) < 10):
        raise InvalidRequest("the page token is not one that this call gave", field="page_token")
    return int(token)


def _read_valid_for(request: admin_pb2.InviteRequest) -> timedelta | None:
    """How long a token is to last; `None` for 0. What is beyond all bounds is cut, for it is too long either way."""
    seconds = messages.read_seconds(request, "valid_for")
    return timedelta(seconds=min(seconds, _LONGEST_SECONDS)) if seconds else None


def write_counts(counts: OutcomeCounts) -> admin_pb2.OutcomeCounts:
    """How many offers ended how."""
    ended = {outcome.value: number for outcome, number in counts.by_outcome.items()}
    return admin_pb2.OutcomeCounts(offered=counts.offered, outstanding=counts.outstanding, **ended)
