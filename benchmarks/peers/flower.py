"""Flower as its users run it: a SuperLink, a SuperNode for each client, and an app that is run on them."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.floor import ROOT
from benchmarks.peers.peer import Peer, Play
from benchmarks.peers.scene import Scene, free_ports, listens
from tests.support.self_signed import make_self_signed

_VERSION = "1.41.0"
_APP = ROOT / "benchmarks" / "peers" / "flower_app"
_START_SECONDS = 60.0


def start(play: Play) -> int:
    """Start all of it; the process id of the SuperLink is returned, which starts the server's app itself."""
    certificate, key = _write_identity(play.scene.folder)
    port, *node_ports = free_ports(1 + play.size.clients)
    address = f"127.0.0.1:{port}"
    server = _start_link(play.scene, port, certificate, key)
    for number, node_port in enumerate(node_ports):
        node = ("--superlink", address, "--root-certificates", certificate, "--port", str(node_port))
        command = (play.scene.program("flower-supernode"), *node, "--node-config", f"number={number}")
        play.scene.start(f"supernode-{number}", *command)
    _run_app(play, address, certificate)
    return server


def _write_identity(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    identity = make_self_signed([])
    certificate.write_bytes(identity.certificate)
    key.write_bytes(identity.key)
    return certificate, key


def _start_link(scene: Scene, port: int, certificate: Path, key: Path) -> int:
    tls = ("--ssl-ca-certfile", certificate, "--ssl-certfile", certificate, "--ssl-keyfile", key)
    link = scene.program("flower-superlink")
    server = scene.start("superlink", link, *tls, "--port", str(port), "--disable-runtime-dependency-installation")
    scene.until("the SuperLink listened", lambda: listens(port), _START_SECONDS)
    return server.pid


def _run_app(play: Play, address: str, certificate: Path) -> None:
    home = play.scene.folder / ".flwr"
    home.mkdir(exist_ok=True)
    link = f'address = "{address}"\nroot-certificates = "{certificate}"\n'
    (home / "config.toml").write_text(f'[superlink]\ndefault = "bench"\n[superlink.bench]\n{link}')
    progress = str(play.progress.path)
    order = {"clients": play.size.clients, "mib": play.size.mib, "rounds": play.rounds, "progress": progress}
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in order.items())
    play.scene.start("run", play.scene.program("flwr"), "run", _APP, "--stream", "--run-config", config)


FLOWER = Peer(
    f"Flower {_VERSION}",
    f"flwr=={_VERSION}",
    "FedAvg over HTTP with TLS and the server's certificate; a process for each task; no weights are written",
    start,
)
