"""The socket through which local commands reach a server. Whoever can open it rules the federation: its owner only."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from fedserver.store.folder import read_contact

_NAME = "admin.sock"
_PREFIX = "fedstream-"
"""How the name of a folder begins that is made for the socket."""

_UNIX_PATH_LIMIT = 100  # bytes; the kernel takes 107
_CUT_FROM_URI = frozenset("#?%,")
"""gRPC takes a socket's address for a URI, or several. In those it ends the path, or stands for something else."""


class AdminSocket:
    """A unix socket in a state directory, or in a folder of its own where that directory's name can be no address.

    Args:
        state: the state directory.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._own_folder: Path | None = None

    def bind(self, server: grpc.aio.Server) -> str:
        """Have the server listen on it; returns the address.

        Raises:
            OSError: it cannot be made there.
        """
        self._clear_away_what_a_killed_process_left()
        path = self._place()
        path.unlink(missing_ok=True)  # of an earlier process: the state's lock says that it is gone
        before = os.umask(0o077)  # it is there before its mode can be set
        try:
            server.add_insecure_port(f"unix:{path}")
            path.chmod(0o600)
        except RuntimeError as error:
            raise OSError(
                f"no unix socket can be made at {path}, by which local commands reach the server; "
                "give a --state on a disk of this machine"
            ) from error
        finally:
            os.umask(before)
        return f"unix:{path}"

    def _place(self) -> Path:
        path = (self._state / _NAME).resolve()
        if _can_be_address(path):
            return path
        self._own_folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        return self._own_folder / _NAME

    def _clear_away_what_a_killed_process_left(self) -> None:
        path = path_in(read_contact(self._state))
        # Of a state directory that was copied, the other server may live.
        if path.parent.name.startswith(_PREFIX) and path.is_socket() and not answers(path):
            with contextlib.suppress(OSError):  # it is no longer this user's, or a state directory of such a name
                path.unlink()
                path.parent.rmdir()

    def remove(self) -> None:
        """Leave nothing of it outside the state directory."""
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)


def path_in(contact: Mapping[str, Any]) -> Path:
    """Where the socket is, by what a state directory says of its server."""
    return Path(str(contact.get("admin", "")).removeprefix("unix:"))


def answers(path: Path) -> bool:
    """Whether a server is at a socket; one that was killed leaves it behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _can_be_address(path: Path) -> bool:
    try:
        length = len(str(path).encode())
    except UnicodeEncodeError:  # a name in an older encoding: gRPC takes text
        return False
    return length <= _UNIX_PATH_LIMIT and not _CUT_FROM_URI & set(str(path))
