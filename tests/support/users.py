"""What machines know of the user whose commands they run."""

from __future__ import annotations

import pwd

import pytest


def leave_without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that sets only a user's number: no `HOME`, and no entry among the users."""

    def unknown(_: int) -> pwd.struct_passwd:
        raise KeyError

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
