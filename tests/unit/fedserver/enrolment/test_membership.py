"""Invited, enrolled, renewed, revoked: what each token and certificate is worth, now and for the next process. 5 s."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fedserver.clock import SystemClock
from fedserver.enrolment import AuditLog, Invited, Membership, Revoked
from fedserver.enrolment.attempts import MOST_PER_ADDRESS, MOST_PER_INVITATION, WINDOW_SECONDS, Attempts, address_of
from fedserver.enrolment.book import Book
from fedserver.enrolment.membership import Asked
from fedserver.store import State
from fedserver.store.members import SiteState
from fedstream.certificates import (
    facts_of,
    is_issued_by,
    issue_site,
    make_authority,
    make_key,
    make_request,
    public_key_of,
    read_request,
)
from fedstream.errors import (
    InvalidRequest,
    LimitExceeded,
    NameMismatch,
    PermissionDenied,
    ProtocolError,
    TokenExpired,
    TokenRevoked,
    TokenUsed,
    Unauthenticated,
    UnknownSite,
    UnknownToken,
)
from fedstream.tls import SERVER_NAME, Identity
from tests.support.clocks import SetClock

pytestmark = pytest.mark.numpy_task

FOREIGN = make_authority()


@dataclass
class Scene:
    """A membership, its clock, and who was shut out."""

    membership: Membership
    state: State
    clock: SetClock
    shut_out: list[str]

    @property
    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.state.folder / "audit.jsonl").read_text().splitlines()]

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.audit]

    async def admit(self, name: str, key: bytes | None = None) -> bytes:
        """Invite a site and have it enrol."""
        return await self.membership.enrol(asked(await self.membership.invite(name), name, key or make_key()))


@contextmanager
def opened(folder: Path, clock: SetClock, client_ca: bytes | None = None) -> Iterator[Scene]:
    state = State(folder)
    authority, audit = state.authority(), AuditLog(folder, clock)
    book = Book(state.database, state.journal)
    scene = Scene(Membership(book, authority, audit, clock, timedelta(days=90), client_ca), state, clock, [])
    scene.membership.shut_out = lambda name, why: scene.shut_out.append(name)
    try:
        yield scene
    finally:
        state.close()


@pytest.fixture
def clock() -> SetClock:
    return SetClock(1_000.0, wall=SystemClock().wall())  # certificates go by the machine's own calendar


@pytest.fixture
def scene(tmp_path: Path, clock: SetClock) -> Iterator[Scene]:
    with opened(tmp_path, clock, FOREIGN.certificate) as made:
        yield made


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def asked(invited: Invited, site: str, key: bytes, **changes: Any) -> Asked:
    return replace(Asked(site, invited.token_id, invited.secret, make_request(key, site), "192.0.2.1"), **changes)


async def refused(scene: Scene, ask: Asked, kind: type[ProtocolError]) -> dict[str, Any]:
    """The line that the audit log has of a refused enrolment."""
    with pytest.raises(kind) as caught:
        await scene.membership.enrol(ask)
    line = scene.audit[-1]
    assert (line["event"], line["reason"]) == ("enrolment refused", kind.reason)
    assert line["said"] == caught.value.message
    return line


async def test_invited_site_gets_a_certificate_for_its_name_and_key(scene: Scene) -> None:
    key = make_key()
    certificate = await scene.admit("alpha", key)
    assert is_issued_by(certificate, scene.state.authority().certificate)
    assert scene.membership.identify(certificate) == "alpha"
    assert scene.membership.book.sites["alpha"].state is SiteState.ENROLLED
    assert scene.events == ["invited", "enrolled"]
    assert scene.audit[1]["site"] == "alpha"
    assert scene.audit[1]["certificate"] == facts_of(certificate).fingerprint


async def test_same_key_is_given_the_same_certificate_again_also_when_the_token_has_expired(scene: Scene) -> None:
    invited, key = await scene.membership.invite("alpha", timedelta(hours=1)), make_key()
    first = await scene.membership.enrol(asked(invited, "alpha", key))
    scene.clock.advance(7_200)
    assert await scene.membership.enrol(asked(invited, "alpha", key)) == first
    assert scene.events == ["invited", "enrolled", "enrolment repeated"]


async def test_token_used_by_another_key_is_refused(scene: Scene) -> None:
    invited = await scene.membership.invite("alpha")
    await scene.membership.enrol(asked(invited, "alpha", make_key()))
    await refused(scene, asked(invited, "alpha", make_key()), TokenUsed)


async def test_expired_token_is_refused(scene: Scene) -> None:
    invited = await scene.membership.invite("alpha", timedelta(seconds=60))
    scene.clock.advance(61)
    await refused(scene, asked(invited, "alpha", make_key()), TokenExpired)


@pytest.mark.parametrize("where", ["name", "request", "both"])
async def test_token_for_another_name_is_refused_and_still_good_for_its_own(scene: Scene, where: str) -> None:
    invited, key = await scene.membership.invite("alpha"), make_key()
    changes: dict[str, Any] = {"name": "beta"} if where in ("name", "both") else {}
    changes |= {"request": make_request(key, "beta")} if where in ("request", "both") else {}
    await refused(scene, asked(invited, "alpha", key, **changes), NameMismatch)
    await scene.membership.enrol(asked(invited, "alpha", key))


@pytest.mark.parametrize("wrong", [{"secret": bytes(16)}, {"secret": b""}, {"token_id": bytes(8)}, {"token_id": b""}])
async def test_guessed_token_is_refused_in_the_same_words_whatever_is_wrong(
    scene: Scene, wrong: dict[str, Any]
) -> None:
    invited = await scene.membership.invite("alpha")
    line = await refused(scene, asked(invited, "alpha", make_key(), **wrong), UnknownToken)
    assert line["said"].startswith("no invitation has this token")
    assert line["peer"] == "192.0.2.1"


async def test_address_with_too_many_wrong_tokens_has_to_wait_and_others_do_not(scene: Scene) -> None:
    invited = await scene.membership.invite("alpha")
    for _ in range(MOST_PER_ADDRESS):
        await refused(scene, asked(invited, "alpha", make_key(), token_id=bytes(8)), UnknownToken)
    await refused(scene, asked(invited, "alpha", make_key()), LimitExceeded)
    await scene.membership.enrol(asked(await scene.membership.invite("beta"), "beta", make_key(), peer="192.0.2.2"))
    scene.clock.advance(WINDOW_SECONDS)
    await refused(
        scene, asked(invited, "alpha", make_key(), token_id=bytes(8)), UnknownToken
    )  # the first of a new count
    await scene.membership.enrol(asked(invited, "alpha", make_key()))


async def test_invitation_that_is_tried_with_wrong_secrets_too_often_is_closed(scene: Scene) -> None:
    invited = await scene.membership.invite("alpha")
    for number in range(MOST_PER_INVITATION):
        await refused(scene, asked(invited, "alpha", make_key(), secret=b"x", peer=f"192.0.2.{number}"), UnknownToken)
    assert "invitation closed" in scene.events
    await refused(scene, asked(invited, "alpha", make_key(), peer="198.51.100.1"), TokenRevoked)


async def test_member_whose_used_token_is_tried_with_wrong_secrets_stays_one(scene: Scene) -> None:
    invited, key = await scene.membership.invite("alpha"), make_key()
    certificate = await scene.membership.enrol(asked(invited, "alpha", key))
    for number in range(MOST_PER_INVITATION):
        await refused(scene, asked(invited, "alpha", make_key(), secret=b"x", peer=f"192.0.2.{number}"), UnknownToken)
    assert await scene.membership.enrol(asked(invited, "alpha", key, peer="198.51.100.1")) == certificate
    assert "invitation closed" not in scene.events


async def test_newer_invitation_takes_the_place_of_the_older(scene: Scene) -> None:
    older, newer = await scene.membership.invite("alpha"), await scene.membership.invite("alpha")
    await refused(scene, asked(older, "alpha", make_key()), TokenRevoked)
    await scene.membership.enrol(asked(newer, "alpha", make_key()))


async def test_request_that_cannot_be_used_is_refused_and_costs_nothing(scene: Scene) -> None:
    invited = await scene.membership.invite("alpha")
    await refused(scene, asked(invited, "alpha", make_key(), request=b"\x30"), InvalidRequest)
    await scene.membership.enrol(asked(invited, "alpha", make_key()))


@pytest.mark.parametrize("name", ["", "no spaces", "../up", "x" * 65, SERVER_NAME])
async def test_name_that_cannot_be_is_not_invited(scene: Scene, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await scene.membership.invite(name)
    assert scene.membership.book.sites == {}


@pytest.mark.parametrize("span", [timedelta(), timedelta(seconds=-1), timedelta(days=367)])
async def test_span_that_cannot_be_is_not_invited_for(scene: Scene, span: timedelta) -> None:
    with pytest.raises(InvalidRequest):
        await scene.membership.invite("alpha", span)


async def test_site_that_joins_again_with_another_key_takes_the_place_of_the_first(scene: Scene) -> None:
    first, second = await scene.admit("alpha"), await scene.admit("alpha")
    with pytest.raises(PermissionDenied, match="has been revoked"):
        scene.membership.identify(first)
    assert scene.membership.identify(second) == "alpha"
    assert scene.shut_out == ["alpha"]


async def test_invitation_of_a_member_leaves_it_a_member_until_it_is_used(scene: Scene) -> None:
    certificate = await scene.admit("alpha")
    await scene.membership.invite("alpha")
    assert scene.membership.identify(certificate) == "alpha"
    assert scene.membership.book.sites["alpha"].state is SiteState.ENROLLED


async def test_revoked_site_is_shut_out_with_its_certificates_and_invitations(scene: Scene) -> None:
    key = make_key()
    certificate = await scene.admit("alpha", key)
    invited = await scene.membership.invite("alpha")
    assert await scene.membership.revoke("alpha") == Revoked(certificates=1, invitations=1)
    assert scene.shut_out == ["alpha"]
    with pytest.raises(PermissionDenied, match="has been revoked; ask the coordinator"):
        scene.membership.identify(certificate)
    with pytest.raises(PermissionDenied):
        await scene.membership.renew(certificate)
    await refused(scene, asked(invited, "alpha", key), TokenRevoked)
    assert await scene.membership.revoke("alpha") == Revoked(certificates=0, invitations=0)
    again = await scene.admit("alpha")
    assert scene.membership.identify(again) == "alpha"
    with pytest.raises(PermissionDenied):
        scene.membership.identify(certificate)


async def test_certificate_of_a_revoked_site_is_not_given_again_for_its_token(scene: Scene) -> None:
    invited, key = await scene.membership.invite("alpha"), make_key()
    await scene.membership.enrol(asked(invited, "alpha", key))
    await scene.membership.revoke("alpha")
    await refused(scene, asked(invited, "alpha", key), TokenRevoked)


async def test_site_that_nobody_invited_cannot_be_revoked(tmp_path: Path, clock: SetClock) -> None:
    with opened(tmp_path, clock) as scene, pytest.raises(UnknownSite, match="no site called nobody was invited"):
        await scene.membership.revoke("nobody")


async def test_certificate_that_has_expired_is_refused_on_an_old_connection_too(scene: Scene) -> None:
    certificates = [await scene.admit("alpha"), brought("hospital")]
    scene.clock.advance(91 * 86_400)
    for certificate in certificates:
        with pytest.raises(Unauthenticated, match="has expired"):
            scene.membership.identify(certificate)


async def test_next_certificate_is_of_the_same_name_and_key_and_the_earlier_stays_good(scene: Scene) -> None:
    first = await scene.admit("alpha")
    assert await scene.membership.renew(first) == first  # as long as it is new
    scene.clock.advance(60 * 86_400)
    second = await scene.membership.renew(first)
    assert second != first
    assert public_key_of(second) == public_key_of(first)
    assert scene.membership.identify(second) == scene.membership.identify(first) == "alpha"
    assert scene.events[-1] == "renewed"


async def test_what_is_known_of_members_outlives_the_process_and_holds_no_secret(
    tmp_path: Path, clock: SetClock
) -> None:
    with opened(tmp_path, clock) as scene:
        member, out = await scene.admit("alpha"), await scene.admit("beta")
        await scene.membership.revoke("beta")
        invited = await scene.membership.invite("gamma")
    everything = all_bytes(tmp_path)
    for secret in (invited.secret, invited.secret.hex().encode()):
        assert secret not in everything
    with opened(tmp_path, clock) as scene:
        assert scene.membership.identify(member) == "alpha"
        with pytest.raises(PermissionDenied):
            scene.membership.identify(out)
        await scene.membership.enrol(asked(invited, "gamma", make_key()))


# Certificates that sites bring.


def brought(name: str, authority: Identity = FOREIGN) -> bytes:
    public_key = read_request(make_request(make_key(), name)).public_key
    return issue_site(authority, name, public_key, timedelta(days=30))


async def test_certificate_of_the_sites_own_authority_is_taken_for_its_name(scene: Scene) -> None:
    assert scene.membership.identify(brought("hospital")) == "hospital"
    with pytest.raises(Unauthenticated, match="of another authority, which renews it"):
        await scene.membership.renew(brought("hospital"))


async def test_certificate_of_the_sites_own_authority_does_not_stand_for_an_invited_site(scene: Scene) -> None:
    await scene.membership.invite("alpha")
    with pytest.raises(PermissionDenied, match="belongs to a site that was invited"):
        scene.membership.identify(brought("alpha"))


async def test_site_with_its_own_certificate_is_revoked_by_its_name(scene: Scene) -> None:
    certificate = brought("hospital")
    await scene.membership.revoke("hospital")
    with pytest.raises(PermissionDenied, match="has been revoked"):
        scene.membership.identify(certificate)


async def test_certificates_that_nobody_stands_for_are_refused(scene: Scene) -> None:
    forgotten = issue_site(scene.state.authority(), "alpha", public_key_of(brought("alpha")), timedelta(days=1))
    for certificate in (forgotten, brought("no name")):
        with pytest.raises(Unauthenticated):
            scene.membership.identify(certificate)


# The audit log.


async def test_site_that_enrols_again_and_again_fills_no_audit_log(scene: Scene) -> None:
    invited, key = await scene.membership.invite("alpha"), make_key()
    for _ in range(200):
        await scene.membership.enrol(asked(invited, "alpha", key))
    scene.clock.advance(60)
    await scene.membership.enrol(asked(invited, "alpha", key))
    assert scene.events == ["invited", "enrolled", *["enrolment repeated"] * 61]
    assert scene.audit[-1]["repeats_left_out"] == 139
    assert "repeats_left_out" not in scene.audit[-2]


async def test_what_cannot_be_written_down_is_not_granted(scene: Scene) -> None:
    (scene.state.folder / "audit.jsonl").mkdir()
    with pytest.raises(OSError, match=r"audit\.jsonl"):
        await scene.membership.invite("alpha")
    assert scene.membership.book.sites == {}


# Attempts.


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:5555", "192.0.2.7"),
        ("ipv6:%5B2001:db8::7%5D:5555", "2001:db8::/64"),
        ("ipv6:[fe80::1%25eth0]:5555", "fe80::/64"),
        ("unix:/some/socket", "unknown"),
        ("", "unknown"),
    ],
)
def test_address_of_a_peer_is_without_its_port(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_attempts_of_many_addresses_take_bounded_memory() -> None:
    attempts = Attempts(lambda: 0.0)
    for number in range(10_000):
        attempts.note_wrong(str(number))
    assert len(attempts._wrong) == 4_096


def held_commits(scene: Scene) -> threading.Event:
    """Commits wait for the event that is returned, as for a slow disk."""
    go, commit = threading.Event(), scene.state.journal._commit

    def held(statements: Any) -> None:
        assert go.wait(20.0)
        commit(statements)

    scene.state.journal._commit = held  # type: ignore[method-assign]
    return go


async def cancelled_while_held(scene: Scene, change: Coroutine[Any, Any, Any], has_changed: Callable[[], bool]) -> None:
    """A change whose caller goes away while it is made durable, and then is."""
    go, task, known = held_commits(scene), asyncio.create_task(change), len(scene.audit)
    while len(scene.audit) == known:  # noqa: ASYNC110 - the log tells nobody
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    async with asyncio.timeout(20.0):
        while not has_changed():  # noqa: ASYNC110 - the book tells nobody
            await asyncio.sleep(0.01)


async def test_revocation_whose_caller_goes_away_counts_all_the_same(scene: Scene) -> None:
    certificate = await scene.admit("alpha")
    await cancelled_while_held(scene, scene.membership.revoke("alpha"), lambda: bool(scene.shut_out))
    with pytest.raises(PermissionDenied):
        scene.membership.identify(certificate)
    assert scene.shut_out == ["alpha"]


async def test_token_whose_site_goes_away_while_it_joins_is_used(scene: Scene) -> None:
    invited, key = await scene.membership.invite("alpha"), make_key()
    sites = scene.membership.book.sites
    enrolling = scene.membership.enrol(asked(invited, "alpha", key))
    await cancelled_while_held(scene, enrolling, lambda: sites["alpha"].state is SiteState.ENROLLED)
    await refused(scene, asked(invited, "alpha", make_key()), TokenUsed)
    certificate = await scene.membership.enrol(asked(invited, "alpha", key))
    assert scene.membership.identify(certificate) == "alpha"
