"""Coming back after an error."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from fedclient.calls import Patience, until_done
from fedstream.errors import LimitExceeded

pytestmark = pytest.mark.numpy_task


@pytest.mark.parametrize(("told", "waits"), [(0.0, 0.05), (0.02, 0.05), (0.1, 0.1)])
async def test_client_that_is_put_off_waits_as_long_as_it_is_told_and_no_less_than_after_a_cut(
    told: float, waits: float
) -> None:
    refusals = [LimitExceeded("later", timedelta(seconds=told))] * 3

    async def once() -> str:
        if refusals:
            raise refusals.pop()
        return "done"

    began = time.monotonic()
    assert await until_done(once, lambda: 0, Patience(first_seconds=0.05), "asking") == "done"
    assert time.monotonic() - began >= 3 * waits
