"""The socket through which local commands reach a server. Whoever can open it rules the federation: its owner only."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import grpc

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
        path = (self._state / "admin.sock").resolve()
        if len(str(path).encode()) > _UNIX_PATH_LIMIT or _CUT_FROM_URI & set(str(path)):
            self._own_folder = Path(tempfile.mkdtemp(prefix="fedstream-"))
            return self._own_folder / "admin.sock"
        return path

    def remove(self) -> None:
        """Leave nothing of it outside the state directory."""
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)
