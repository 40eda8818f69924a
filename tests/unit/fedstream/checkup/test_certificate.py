"""What a certificate tells of itself, and of the clock of the machine that looks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trustme

from fedstream.checkup.certificate import judge_clock, judge_name, judge_validity, validity
from fedstream.checkup.runner import Verdict
from fedstream.tls import SERVER_NAME
from tests.support.self_signed import make_self_signed

pytestmark = pytest.mark.numpy_task

CERTIFICATE = make_self_signed([]).certificate
BEGINS, ENDS = validity(CERTIFICATE)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("now", "verdict", "found"),
    [
        (datetime.now(UTC), Verdict.OK, f"valid until {ENDS:%Y-%m-%d}"),
        (ENDS - 29 * DAY, Verdict.WARNING, f"it ends on {ENDS:%Y-%m-%d}, in 29 days"),
        (ENDS + DAY, Verdict.FAILED, f"it ended on {ENDS:%Y-%m-%d}"),
        (BEGINS - DAY, Verdict.FAILED, f"it begins only at {BEGINS:%Y-%m-%d %H:%M} UTC"),
    ],
)
def test_validity_is_judged_by_the_date(now: datetime, verdict: Verdict, found: str) -> None:
    result = judge_validity(CERTIFICATE, now, "Renew it")

    assert (result.verdict, result.found) == (verdict, found)
    assert bool(result.advice) == (verdict is not Verdict.OK)


@pytest.mark.parametrize(("now", "side"), [(BEGINS - DAY, "before"), (ENDS + DAY, "after")])
def test_clock_outside_of_the_certificates_dates_fails(now: datetime, side: str) -> None:
    result = judge_clock(CERTIFICATE, now, 0.0)

    assert result.verdict is Verdict.FAILED
    assert f"UTC is {side} the certificate's dates" in result.found
    assert result.advice.startswith("Set the clock of this machine")


@pytest.mark.parametrize(
    ("ahead_seconds", "verdict", "found"),
    [
        (None, Verdict.OK, "UTC; the server does not say its own time"),
        (0.2, Verdict.OK, "UTC, within 1 s of the server's clock"),
        (-60, Verdict.OK, "UTC, within 60 s of the server's clock"),
        (61, Verdict.WARNING, "0:01:01 (h:mm:ss) ahead of the server's clock"),
        (-90_000, Verdict.WARNING, "1 day, 1:00:00 (h:mm:ss) behind the server's clock"),
    ],
)
@pytest.mark.parametrize("certificate", [CERTIFICATE, None])
def test_clock_is_compared_with_the_servers(
    certificate: bytes | None, ahead_seconds: float | None, verdict: Verdict, found: str
) -> None:
    result = judge_clock(certificate, datetime.now(UTC), ahead_seconds)

    assert result.verdict is verdict
    assert result.found.endswith(found)
    assert bool(result.advice) == (verdict is not Verdict.OK)


def test_name_is_the_one_that_clients_look_for() -> None:
    other = trustme.CA().issue_cert("proxy.example.org").cert_chain_pems[0].bytes()

    assert judge_name(CERTIFICATE).found == f"it names {SERVER_NAME}"
    assert judge_name(other).verdict is Verdict.FAILED
    assert "but proxy.example.org" in judge_name(other).found
