"""The floor: how fast this machine can move the same bytes, with nothing but sockets and files.

N client processes and a server with a process for each of them pass a model down and a trained model up over loopback
TCP, under TLS where the row says so. Hundreds of clients share a few processes, each with a connection of its own. The
server makes durable what a federation's server must keep: each update, and the new model. There is no format, no
checksum, no arithmetic, and nothing to resume. What a federation takes is quoted as a multiple of it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rows import Row, Security
from tests.support.self_signed import make_self_signed

ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_SECONDS = 600.0
_MOST_PAIRS = 32
_FEW_PAIRS = 4
"""A thousand processes at each end would wait for a core, not for one another's bytes."""


def measure_floor(row: Row, rounds: int, folder: Path) -> list[float]:
    """Seconds of each round, from the first byte down to the new model on the medium.

    Args:
        row: what to move, and how.
        rounds: how many, one after the other over the same connections.
        folder: where files may be made; what is made is removed again.

    Raises:
        subprocess.SubprocessError: it failed, or took over ten minutes.
    """
    place = Path(tempfile.mkdtemp(prefix="floor-", dir=folder))
    try:
        order = {
            "clients": row.size.clients,
            "pairs": row.size.clients if row.size.clients <= _MOST_PAIRS else _FEW_PAIRS,
            "num_bytes": row.size.num_bytes,
            "rounds": rounds,
            "folder": str(place),
            "tls": row.security is not Security.PLAIN,
        }
        if order["tls"]:
            identity = make_self_signed([])
            (place / "identity.pem").write_bytes(identity.certificate + identity.key)
        command = [sys.executable, "-m", "benchmarks.floor_ends", json.dumps(order)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=_TIMEOUT_SECONDS)
        found: list[float] = json.loads(done.stdout)
        return found
    finally:
        shutil.rmtree(place, ignore_errors=True)
