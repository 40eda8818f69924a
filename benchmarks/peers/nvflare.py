"""NVFLARE as its users run it: startup kits, a server and clients started by them, and a job that is submitted."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.floor import ROOT
from benchmarks.peers.peer import Peer, Play
from benchmarks.peers.scene import free_ports

_VERSION = "2.9.0"
_ENDS = ROOT / "benchmarks" / "peers" / "nvflare_ends"
_ADMIN = "admin@example.org"
_SERVER = "localhost"


def start(play: Play) -> int:
    """Start all of it; the server's process id is returned."""
    kits = _provision(play)
    server = play.scene.start("server", *_starting(kits / _SERVER))
    for number in range(play.size.clients):
        play.scene.start(f"site-{number}", *_starting(kits / f"site-{number}"))
    order = (play.size.clients, play.size.mib, play.rounds, play.progress.path)
    play.scene.start("submit", play.scene.python, _ENDS / "submit.py", kits / _ADMIN, *map(str, order))
    return server.pid


def _provision(play: Play) -> Path:
    project = play.scene.folder / "project.yml"
    project.write_text(json.dumps(_project(play.size.clients)))  # JSON is YAML
    play.scene.run(
        "provision", play.scene.program("nvflare"), "provision", "-p", project, "-w", project.parent / "kits"
    )
    return project.parent / "kits" / "shift" / "prod_00"


def _project(clients: int) -> dict[str, object]:
    [port] = free_ports(1)
    server = {"name": _SERVER, "type": "server", "org": "bench", "fed_learn_port": port, "admin_port": port}
    sites = [{"name": f"site-{number}", "type": "client", "org": "bench"} for number in range(clients)]
    admin = {"name": _ADMIN, "type": "admin", "org": "bench", "role": "project_admin"}
    builders = {
        "workspace.WorkspaceBuilder": {"template_file": ["master_template.yml"]},
        "static_file.StaticFileBuilder": {"config_folder": "config", "scheme": "grpc"},
        "cert.CertBuilder": {},
        "signature.SignatureBuilder": {},
    }
    return {
        "api_version": 3,
        "name": "shift",
        "description": "peers on the same work",
        "participants": [server, *sites, admin],
        "builders": [{"path": f"nvflare.lighter.impl.{path}", "args": args} for path, args in builders.items()],
    }


def _starting(kit: Path) -> tuple[str | Path, ...]:
    """`start.sh` does the same behind a watchdog, which would start it again."""
    return "bash", kit / "startup" / "sub_start.sh", "--once"


NVFLARE = Peer(
    f"NVFLARE {_VERSION}",
    f"nvflare=={_VERSION}",
    "FedAvg over gRPC with mutual TLS; each new model is written, not synced, updates are not",
    start,
)
