"""What a scene has at hand: a scripted server at an address of its own, the client's process, and the findings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fedserver.addresses import lasting_port
from fedserver.conformance.findings import Findings, SkippedError, UnmetError
from fedserver.conformance.material import Material
from fedserver.conformance.office import Certificates, Office
from fedserver.conformance.subject import GIVEN, Subject, filled
from fedserver.conformance.talk import PATIENCE_SECONDS, Talk, offer_id, upload_id
from fedserver.conformance.transfer import Transfer
from fedstream import limits, wire
from fedstream.tls import Identity, server_credentials
from fedstream.v1 import (
    common_pb2,
    enrolment_pb2_grpc,
    negotiation_pb2,
    negotiation_pb2_grpc,
    transfer_pb2_grpc,
)

SITE = "conformance-site"
_LOOK_SECONDS = 0.02
_AWAY_SECONDS = 4.0
_JOIN_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Command:
    """How the client is started; `limited` are further words that let it run one epoch a round at most.

    `join` is how it joins with a token, to its end, and `member` how it is started with what joining left.
    """

    words: Sequence[str]
    limited: Sequence[str] = ()
    join: Sequence[str] = ()
    member: Sequence[str] = ()


class Negotiation(negotiation_pb2_grpc.NegotiationServiceServicer):
    """Hands each stream to the scene that plays."""

    def __init__(self, play: Play) -> None:
        self._play = play

    async def DescribeTask(self, _request: Any, _context: Any) -> negotiation_pb2.DescribeTaskResponse:
        material = self._play.material
        self._play.described += 1
        return negotiation_pb2.DescribeTaskResponse(
            protocol=common_pb2.ProtocolRange(min=limits.PROTOCOL_VERSION, max=limits.PROTOCOL_VERSION),
            federation_name="conformance",
            task_name=material.task,
            task_settings=dict(material.settings),
            meaning=wire.write_meaning(material.meaning),
            schema_sha256=material.schema.digest(),
        )

    async def Negotiate(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        play = self._play
        talk = Talk(context, play.material, play.transfer, play.findings, play.note, play.given_up)
        play.note("client -> Negotiate")
        play.opened.append(asyncio.get_running_loop().time())
        play.talks.put_nowait(talk)
        await talk.serve(requests)


class Play:
    """One scene on its way."""

    def __init__(self, command: Command, material: Material, folder: Path) -> None:
        self.material = material
        self.findings = Findings()
        self.opened: list[float] = []
        """When each Negotiate stream began."""
        self.given_up: dict[str, str] = {}
        """What the client said, by offer, where it ended its work with `failure`."""
        self.described = 0
        """How often DescribeTask was called."""
        self.talks: asyncio.Queue[Talk] = asyncio.Queue()
        self.transfer = Transfer(material, self.findings, self.note)
        self._command = command
        self._folder = folder
        folder.mkdir(parents=True)
        self._transcript = folder / "transcript.txt"
        self._began = asyncio.get_running_loop().time()
        self._server: grpc.aio.Server | None = None
        self._port = 0
        self._subject: Subject | None = None
        self._joined: Subject | None = None
        self._office: Office | None = None

    def note(self, words: str) -> None:
        """Add a line to the scene's transcript."""
        since = asyncio.get_running_loop().time() - self._began
        with self._transcript.open("a") as transcript:
            transcript.write(f"{since:8.3f}  {words}\n")

    # The server

    async def open(self) -> None:
        """Listen; again at the same port after `close`."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        negotiation_pb2_grpc.add_NegotiationServiceServicer_to_server(Negotiation(self), self._server)
        transfer_pb2_grpc.add_TransferServiceServicer_to_server(self.transfer, self._server)
        self._port = self._port or lasting_port()
        address = f"127.0.0.1:{self._port}"
        if self._office is None:
            self._server.add_insecure_port(address)
        else:
            enrolment_pb2_grpc.add_CertificateServiceServicer_to_server(Certificates(self._office), self._server)
            credentials = server_credentials(self._office.server, self._office.authority.certificate)
            self._server.add_secure_port(address, credentials)
        await self._server.start()

    async def open_office(self) -> Office:
        """Ask for certificates from now on, and let a site join.

        Raises:
            SkippedError: it is not known how the client does that.
        """
        if not (self._command.join and self._command.member):
            raise SkippedError("no words to join with were given with --join and --member")
        await self.close()
        self._office = Office(SITE, self.findings, self.note)
        await self._office.open()
        await self.open()
        return self._office

    async def close(self) -> None:
        """Stop as a killed server does: every connection breaks."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def restart(self) -> None:
        """Break every connection, and be there again a moment later with all that was committed."""
        self.note("server: restarts")
        await self.close()
        self.transfer.cut_all()
        await asyncio.sleep(0.2)
        await self.open()

    # The client

    async def begin(self, *, limited: bool = False) -> None:
        """Start the client, or start it again after it was killed."""
        if self._subject is None:
            self._subject = self._make_subject(limited=limited)
        self.note("the client is started")
        await self._subject.start()

    def _make_subject(self, *, limited: bool) -> Subject:
        if limited and not self._command.limited:
            raise SkippedError("no words that limit its epochs were given with --limited")
        words = self._command.words if self._office is None else self._command.member
        return self._filled([*words, *(self._command.limited if limited else ())])

    def _filled(self, words: Sequence[str], token: str = "") -> Subject:
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        site = self._address, SITE, str(self.material.write_data(data))
        folders = (str(self._folder / name) for name in ("state", "out"))
        values = dict(zip(GIVEN, (*site, *folders, token, str(self._folder / "identity")), strict=True))
        return Subject(filled(words, values), self._folder / "client.log")

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def join_federation(self, pinned: Identity | None = None) -> int | None:
        """Let the client join; returns how that ended. `pinned` has the certificate that the token names, if another.

        Raises:
            UnmetError: it did not end.
        """
        assert self._office is not None, "the office is open"
        self.note("the client is to join")
        joining = self._filled(self._command.join, self._office.token(self._address, pinned))
        try:
            await joining.start()
            status = await joining.ends(_JOIN_SECONDS)
        finally:
            await joining.stop()
        if status is None:
            raise UnmetError("R-JOIN-3", f"joining had not ended after {_JOIN_SECONDS:g} s")
        self._joined = joining
        return status

    async def kill(self) -> None:
        """Kill the client, without a word to it."""
        self.note("the client is killed")
        if self._subject is not None:
            await self._subject.kill()

    async def end(self) -> None:
        """End client and server."""
        if self._subject is not None:
            await self._subject.stop()
        if self._office is not None:
            await self._office.close()
        await self.close()

    @property
    def exit_status(self) -> int | None:
        return self._subject.exit_status if self._subject is not None else None

    def last_words(self) -> str:
        """What the client said last."""
        subject = self._subject or self._joined
        return subject.last_words() if subject is not None else ""

    # What scenes wait for

    async def session(self, rule: str = "R-TIM-5", within: float = PATIENCE_SECONDS) -> Talk:
        """The next negotiation stream.

        Raises:
            UnmetError: none came in time.
        """
        await self.until(lambda: not self.talks.empty(), rule, "the client did not come to Negotiate", within)
        return self.talks.get_nowait()

    async def until(
        self, is_so: Callable[[], bool], rule: str, otherwise: str, within: float = PATIENCE_SECONDS
    ) -> None:
        """Wait until something is so, which `rule` obliges the client to bring about.

        Raises:
            UnmetError: it was not so in time, or the client has ended.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        while not is_so():
            if self.exit_status is not None and not is_so():
                raise UnmetError(rule, f"{otherwise}; it had ended with {self.exit_status}: {self.last_words()}")
            if loop.time() > deadline:
                raise UnmetError(rule, f"{otherwise} within {within:g} s")
            await asyncio.sleep(_LOOK_SECONDS)
        self.findings.check(rule, True, "")

    async def delivered(self, number: int = 1, rule: str = "R-UP-14", within: float = PATIENCE_SECONDS) -> None:
        """Wait until the update of a round is finished.

        Raises:
            UnmetError: it was not in time, or the client said that it would not be.
        """
        uploads, name, offer = self.transfer.uploads, upload_id(number), offer_id(number)

        def is_settled() -> bool:
            return (name in uploads and uploads[name].finished) or offer in self.given_up

        await self.until(is_settled, rule, "the update was not finished", within)
        if offer in self.given_up:
            raise UnmetError(rule, f"the client gave the update up, with failure: {self.given_up[offer]}")

    async def rests(self, seconds: float) -> None:
        """Let some time pass in which the client is to do nothing wrong."""
        await asyncio.sleep(seconds)

    async def stays_away(self, rule: str, otherwise: str) -> None:
        """See that no further session comes: for longer than the first waits of R-TIM-5, or until the client ends."""
        sessions = len(self.opened)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _AWAY_SECONDS
        while loop.time() < deadline and self.exit_status is None:  # noqa: ASYNC110 - a process's end is no event
            await asyncio.sleep(_LOOK_SECONDS)
        self.findings.check(rule, len(self.opened) == sessions, otherwise)


@asynccontextmanager
async def playing(command: Command, material: Material, folder: Path) -> AsyncIterator[Play]:
    """A scene's server, open; it and the client end with the scene."""
    play = Play(command, material, folder)
    await play.open()
    try:
        yield play
    finally:
        await play.end()
