"""That a client in another language keeps to the protocol, by the command that judges any client. A minute."""

from __future__ import annotations

import shlex
from typing import ClassVar

import pytest

from tests.support.conformance import check_passed, conformance
from tests.support.foreign import ForeignClient


class ConformanceSuite:
    """Every scene of `fedserver conformance`."""

    client: ClassVar[ForeignClient]

    @pytest.mark.slow
    @pytest.mark.timeout(900)
    def test_client_conforms(self) -> None:
        self.client.build()
        words = [*self.client.run, "--plaintext", "--server", "{server}", "--name", "{name}", "--data", "{data}"]
        words += ["--state-dir", "{state}", "--out", "{out}"]
        joining = shlex.join([*self.client.join, "--token", "{token}", "--identity", "{identity}"])
        member = shlex.join([*self.client.run, "--identity", "{identity}", *words[-6:]])
        more = ["--limited", "--max-epochs 1", "--join", joining, "--member", member]
        check_passed(conformance("--json", *more, "--", *words))
