"""Renewing a site's certificate: when it is time, and what a failure costs. A moment."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from structlog.testing import capture_logs

from fedclient.connection import Connection
from fedclient.identity import IdentityFolder, Membership
from fedclient.renewal import keep_renewed, renew_if_due
from fedstream.certificates import (
    facts_of,
    issue_site,
    make_authority,
    make_key,
    make_request,
    public_key_of,
    read_request,
    to_der,
)
from fedstream.v1 import enrolment_pb2
from tests.support.sessions import until

pytestmark = pytest.mark.numpy_task

AUTHORITY = make_authority()
LONG, SHORT = timedelta(days=90), timedelta(minutes=20)


def certificate_for(key: bytes, validity: timedelta) -> bytes:
    return issue_site(AUTHORITY, "alpha", read_request(make_request(key, "alpha")).public_key, validity)


@dataclass
class Server:
    """Answers to a renewal, and counts."""

    answers: list[bytes | Exception] = field(default_factory=list)
    asked: int = 0

    @property
    def certificates(self) -> Server:
        return self

    async def RenewCertificate(self, request: Any, **_options: Any) -> Any:  # noqa: N802 - the name of the RPC
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return enrolment_pb2.RenewCertificateResponse(certificate=answer)

    @property
    def connection(self) -> Connection:
        return cast(Connection, self)


def site(folder: Path, validity: timedelta) -> IdentityFolder:
    made = IdentityFolder(folder)
    made.keep(Membership("alpha", "a:1"), certificate_for(made.key(), validity), AUTHORITY.certificate)
    return made


async def test_certificate_with_time_left_is_left_alone(tmp_path: Path) -> None:
    server = Server()
    assert not await renew_if_due(site(tmp_path, LONG), server.connection)
    assert server.asked == 0


async def test_certificate_in_its_last_third_is_renewed_and_kept(tmp_path: Path) -> None:
    folder = site(tmp_path, SHORT)
    following = certificate_for(folder.key(), LONG)
    assert await renew_if_due(folder, Server([to_der(following)]).connection)
    assert folder.credentials().identity.certificate == following


FAILURES = {
    "the network": grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()),
    "no certificate": b"noise",
    "of another key": to_der(certificate_for(make_key(), LONG)),
    "of another authority": to_der(
        issue_site(make_authority(), "alpha", public_key_of(certificate_for(make_key(), LONG)), LONG)
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_renewal_that_fails_changes_nothing_and_is_tried_again(tmp_path: Path, kind: str) -> None:
    folder = site(tmp_path, SHORT)
    before = folder.credentials().facts
    following = certificate_for(folder.key(), LONG)
    server = Server([FAILURES[kind], to_der(following)])
    assert not await renew_if_due(folder, server.connection)
    assert folder.credentials().facts == before
    assert await renew_if_due(folder, server.connection)
    assert folder.credentials().facts == facts_of(following)


async def test_look_that_fails_is_no_reason_never_to_look_again(tmp_path: Path) -> None:
    folder = site(tmp_path, SHORT)
    server = Server([to_der(certificate_for(folder.key(), LONG))])
    certificate = tmp_path / "site.crt"
    away = certificate.rename(tmp_path / "away")  # as on a share that is gone for a moment
    renewed = asyncio.Event()

    async def reopen() -> None:
        renewed.set()

    with capture_logs() as logs:
        task = asyncio.create_task(keep_renewed(folder, server.connection, reopen, look_seconds=0.01))
        await until(lambda: bool(logs))
    away.rename(certificate)
    await asyncio.wait_for(renewed.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert logs[0]["event"] == "the certificate could not be looked at"


async def first_wait(folder: IdentityFolder, monkeypatch: pytest.MonkeyPatch) -> float:
    """How many seconds pass before the first look."""
    waits: list[float] = []

    async def note(wait: float) -> None:
        waits.append(wait)
        raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", note)
    with pytest.raises(asyncio.CancelledError):
        await keep_renewed(folder, Server().connection, nothing)
    return waits[0]


@pytest.mark.parametrize(
    ("validity", "seconds"),
    [(LONG, 3_600), (timedelta(hours=5), 1_800), (timedelta(days=0.01), 372)],  # the last one twice before it ends
)
async def test_looks_come_as_often_as_the_certificate_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validity: timedelta, seconds: int
) -> None:
    folder = site(tmp_path, validity)  # which begins an hour before it is issued, for clocks that are behind
    assert await first_wait(folder, monkeypatch) == pytest.approx(seconds, abs=1)


async def test_certificate_that_cannot_be_read_is_looked_at_again_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = site(tmp_path, LONG)
    (tmp_path / "site.crt").unlink()
    assert await first_wait(folder, monkeypatch) == 60


async def nothing() -> None:
    pass


async def test_connection_is_made_anew_once_with_the_next_certificate(tmp_path: Path) -> None:
    folder = site(tmp_path, SHORT)
    server = Server([to_der(certificate_for(folder.key(), LONG))])
    renewed = asyncio.Event()
    calls = 0

    async def reopen() -> None:
        nonlocal calls
        calls += 1
        renewed.set()

    task = asyncio.create_task(keep_renewed(folder, server.connection, reopen, look_seconds=0.01))
    await asyncio.wait_for(renewed.wait(), 10)
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (calls, server.asked) == (1, 1)
