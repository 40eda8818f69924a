"""`fedserver demo`: the main job on one machine, a server and several sites as processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.live import Live

from fedserver.commands.admin import CALL_SECONDS
from fedserver.commands.status import picture
from fedserver.config import ConfigError, load_config
from fedserver.exit_codes import ExitCode, fail
from fedserver.signals import leave_in_order_on_signals
from fedserver.store.folder import read_contact
from fedstream.sizes import size
from fedstream.v1 import admin_pb2, admin_pb2_grpc
from fedtask.brain_mri.settings import DEMO, Preset, read_brain_mri_settings
from fedtask.division import require_division
from fedtask.images.folders import list_folder
from fedtask.images.site import list_train
from fedtask.task import TaskError

_MARKER = "demo.json"
_HOLDOUT_IMAGES = 300
_CLIENTS, _DIVISION, _ROUNDS = 4, "dirichlet:0.5", 10
_START_SECONDS = 30.0
_LEAVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What to try. `data` is a folder with `train/` and `val/`, or `None` for the phantom."""

    data: Path | None
    backbone_weights: str | None
    clients: int | None
    rounds: int | None
    division: str | None
    strategy: str
    update_encoding: str
    epochs: int | None
    task_settings: Mapping[str, str]
    seed: int
    out: Path


def run_demo(plan: DemoPlan) -> None:
    """Start everything, show how it goes, and say where the report is."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    _require_sense(plan)  # before anything is removed: a slip is not to cost an earlier demo, or the data
    leave_in_order_on_signals()  # or server and sites would go on without it
    _make_room(plan.out)
    data = plan.data if plan.data is not None else _phantom(plan, console)
    with ExitStack() as stack:
        server = stack.enter_context(_process(_server_command(plan, data), plan.out / "logs" / "server.log"))
        contact = _await_contact(server, plan.out)
        console.print(f"server at {contact['address']}, {contact['fingerprint']}")
        names = [f"site_{number}" for number in range(_clients(plan))]
        _join(plan, contact, names)
        console.print(f"{len(names)} sites invited and joined, each with a key and a certificate of its own")
        sites = []
        for number, name in enumerate(names):
            command, log = _client_command(plan, data, name, number), plan.out / "logs" / f"{name}.log"
            sites.append(_Site(name, log, stack.enter_context(_process(command, log))))
        console.print(f"{_clients(plan)} sites started; every process writes its log to {plan.out / 'logs'}")
        _show_until_over(server, sites, contact, console)
        if server.wait(_LEAVE_SECONDS) or not _summary(plan).exists():
            # The sites would wait for it to come back, and are ended with this block.
            log = plan.out / "logs" / "server.log"
            raise fail(f"the federation did not finish{_last_words(log)}; see {log}", ExitCode.FAILED)
        stack.pop_all().close()  # the sites have heard the outcome and leave by themselves; see `_process`
    _show_result(plan, console)


def _make_room(out: Path) -> None:
    """Start in a fresh folder: an earlier demo's is replaced, anything else is left alone."""
    if (out / _MARKER).exists():
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise fail(f"{out} holds something else than an earlier demo; give another --out", ExitCode.BAD_CONFIGURATION)
    (out / "logs").mkdir(parents=True)
    (out / _MARKER).write_text("{}\n")


def _phantom(plan: DemoPlan, console: Console) -> Path:
    console.print("No --data was given: generating MRI phantom images. They are not patients.")
    folder = plan.out / "phantom"
    command = [sys.executable, "-m", "fedtask.brain_mri.phantom", str(folder), "--seed", str(plan.seed)]
    command += ["--num-train", DEMO.settings["phantom_images"], "--num-val", str(_HOLDOUT_IMAGES)]
    command += ["--size", DEMO.settings["image_size"]]
    log = plan.out / "logs" / "phantom.log"
    with _process(command, log) as making:
        if making.wait():
            raise fail(f"the phantom images could not be made; see {log}", ExitCode.FAILED)
    return folder


def _require_sense(plan: DemoPlan) -> None:
    """See what can be seen of the options at once; the rest is found by the server and the sites."""
    try:
        given = {"rounds": plan.rounds, "strategy": plan.strategy, "update_encoding": plan.update_encoding}
        load_config(None, {**given, "seed": plan.seed, "plan": {"epochs": plan.epochs}})
        settings = read_brain_mri_settings(plan.task_settings)
        require_division(_division(plan))
        if plan.data is not None:
            _require_folders(plan.data, plan.out)
            list_train(plan.data, settings.class_names, {})
            list_folder(plan.data / "val", settings.class_names, {})
    except (ConfigError, TaskError, ValueError) as error:
        raise fail(str(error), ExitCode.BAD_CONFIGURATION) from error
    weights = plan.backbone_weights
    if weights not in (None, "random", "imagenet") and not Path(str(weights)).is_file():
        raise fail(f"--backbone-weights: there is no file {weights}", ExitCode.BAD_CONFIGURATION)


def _require_folders(data: Path, out: Path) -> None:
    for split in ("train", "val"):
        if not (data / split).is_dir():
            message = f"{data} has no folder {split}/; the demo wants train/<class>/* for the sites and val/<class>/* "
            raise fail(message + "as the coordinator's holdout", ExitCode.BAD_CONFIGURATION)
        if (data / split).resolve().is_relative_to(out.resolve()):
            message = f"{data / split} lies inside {out}, which every demo makes anew; give another --out"
            raise fail(message, ExitCode.BAD_CONFIGURATION)


def _preset(plan: DemoPlan) -> Preset | None:
    """What makes the phantom learnable from random weights; real data takes the task's own defaults."""
    return DEMO if plan.data is None else None


def _clients(plan: DemoPlan) -> int:
    preset = _preset(plan)
    return plan.clients or (preset.clients if preset else _CLIENTS)


def _division(plan: DemoPlan) -> str:
    preset = _preset(plan)
    return plan.division or (preset.division if preset else _DIVISION)


def _server_command(plan: DemoPlan, data: Path) -> list[str]:
    preset = _preset(plan)
    settings = {**(preset.settings if preset else {}), **plan.task_settings}
    rounds = plan.rounds or (preset.rounds if preset else _ROUNDS)
    weights = plan.backbone_weights or ("random" if preset else None)
    command = [sys.executable, "-m", "fedserver.cli", "run", "--listen", "127.0.0.1:0", "--name", "demo"]
    command += ["--holdout", str(data / "val"), "--rounds", str(rounds), "--min-clients", str(_clients(plan))]
    command += ["--strategy", plan.strategy, "--seed", str(plan.seed), "--out", str(plan.out)]
    command += ["--update-encoding", plan.update_encoding]
    command += ["--state", str(_state(plan.out)), "--log-json"]
    command += ["--backbone-weights", weights] if weights else []
    command += ["--epochs", str(plan.epochs)] if plan.epochs else []
    for key, value in settings.items():
        command += ["--task-set", f"{key}={value}"]
    return command


def _join(plan: DemoPlan, contact: Mapping[str, Any], names: Sequence[str]) -> None:
    """Invite each site, and have it join, as a coordinator and the sites' engineers would."""
    with ExitStack() as stack:
        joining = []
        for name, token in zip(names, _invite(contact, names), strict=True):
            command = [sys.executable, "-m", "fedclient.cli", "join", "--token", "-"]
            log = plan.out / "logs" / f"{name}.log"
            process = stack.enter_context(_process([*command, "--identity", str(_identity(plan, name))], log, token))
            joining.append((process, log))
        for process, log in joining:
            if process.wait(_START_SECONDS):
                raise fail(f"a site could not join; see {log}", ExitCode.FAILED)


def _invite(contact: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    with grpc.insecure_channel(contact["admin"]) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        requests = [admin_pb2.InviteRequest(client_name=name) for name in names]
        return [stub.Invite(request, timeout=CALL_SECONDS).token for request in requests]


def _identity(plan: DemoPlan, name: str) -> Path:
    return plan.out / "clients" / name / "identity"


def _client_command(plan: DemoPlan, data: Path, name: str, number: int) -> list[str]:
    folder = plan.out / "clients" / name
    command = [sys.executable, "-m", "fedclient.cli", "run", "--identity", str(_identity(plan, name))]
    command += ["--data", str(data)]
    command += ["--shard", f"{number}/{_clients(plan)}", "--division", _division(plan)]
    command += ["--division-seed", str(plan.seed), "--out", str(folder), "--state-dir", str(folder / "state")]
    return command


def _state(out: Path) -> Path:
    return out / "server"


@contextmanager
def _process(command: Sequence[str], log: Path, said: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A child whose output goes to `log`, and that is gone when the block ends, however it ends.

    Args:
        command: what it is.
        log: where its output is appended.
        said: what it reads from its standard input.
    """
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.PIPE)
    try:
        assert process.stdin is not None, "it was asked for"
        with process.stdin as stdin, suppress(BrokenPipeError):  # if it has ended already, its log says why
            stdin.write(said.encode())
        yield process
        _wait_quietly(process, _LEAVE_SECONDS)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                process.send_signal(number)
                _wait_quietly(process, 10.0)


def _wait_quietly(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _await_contact(server: subprocess.Popen[bytes], out: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        contact = read_contact(_state(out))
        if contact.get("pid") == server.pid:
            return contact
        time.sleep(0.05)
    raise fail(f"the server did not start; see {out / 'logs' / 'server.log'}", ExitCode.FAILED)


_SIGNALLED = 128
"""Above it are the statuses of sites that a signal has ended with time for a good-bye; of others they are negative."""


@dataclass(frozen=True, slots=True)
class _Site:
    """A site's process, and where it writes."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]


def _require_no_failure(server: subprocess.Popen[bytes], sites: Sequence[_Site]) -> None:
    """End where a site has ended with an error: each round needs all of them, and the server would wait for a day.

    Not of one that a signal has ended, which may be tried out: it can be started again.
    """
    failed = next((site for site in sites if 0 < (site.process.poll() or 0) < _SIGNALLED), None)
    if failed is None:
        return
    _wait_quietly(server, 2.0)  # if the federation failed, its word says more
    if server.poll() is None:
        lines = failed.log.read_text(errors="replace").splitlines()
        said = next((f": {line.removeprefix('fedclient: ')}" for line in reversed(lines) if line), "")
        raise fail(
            f"{failed.name} ended with status {failed.process.returncode}{said}; see {failed.log}", ExitCode.FAILED
        )


def _show_until_over(
    server: subprocess.Popen[bytes], sites: Sequence[_Site], contact: Mapping[str, Any], console: Console
) -> None:
    with grpc.insecure_channel(contact["admin"]) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        show = _show_live if console.is_terminal else _show_lines
        try:
            show(server, sites, stub, console)
        except grpc.RpcError:
            return  # it has just ended: its exit status says how


def _show_live(
    server: subprocess.Popen[bytes], sites: Sequence[_Site], stub: admin_pb2_grpc.AdminServiceStub, console: Console
) -> None:
    with Live(console=console, refresh_per_second=4) as live:
        while server.poll() is None:
            live.update(picture(stub))
            _require_no_failure(server, sites)
            time.sleep(0.5)


def _show_lines(
    server: subprocess.Popen[bytes], sites: Sequence[_Site], stub: admin_pb2_grpc.AdminServiceStub, console: Console
) -> None:
    said, shown = "", 0
    while server.poll() is None:
        state = stub.GetState(admin_pb2.GetStateRequest(), timeout=CALL_SECONDS)
        if state.reason != said:
            said = state.reason
            is_waiting = state.state == admin_pb2.FEDERATION_STATE_WAITING
            console.print(f"waiting {said}" if is_waiting and said.startswith("for ") else said)
        rounds = stub.ListRounds(admin_pb2.ListRoundsRequest(page_size=1000), timeout=CALL_SECONDS).rounds
        over = [one for one in rounds if one.phase == admin_pb2.ROUND_PHASE_DONE]
        for one in over[shown:]:
            scores = ", ".join(f"{metric.name} {metric.value:.4f}" for metric in one.metrics if metric.name in _CURVE)
            console.print(f"round {one.number} over: {scores or one.reason}")
        shown = len(over)
        _require_no_failure(server, sites)
        time.sleep(0.5)


_CURVE = ("loss", "accuracy", "auc")


def _last_words(log: Path) -> str:
    """Why the server failed, by its log, if that says so."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        with suppress(ValueError, KeyError, TypeError):  # what is not JSON, or cut short, is none of these words
            event = json.loads(line)
            if event["event"] == "failed":
                return f": {event['reason']}"
    return ""


def _summary(plan: DemoPlan) -> Path:
    return plan.out / "report" / "summary.json"


def _show_result(plan: DemoPlan, console: Console) -> None:
    summary = json.loads(_summary(plan).read_text())
    accuracy, loss = summary.get("accuracy"), summary.get("loss")
    kind = " on generated phantom images, not patients" if plan.data is None else ""
    if accuracy is not None and loss is not None:
        scores = f"holdout accuracy {accuracy:.4f}, loss {loss:.4f}{kind}"
        console.print(f"\nBest global model: round {summary['best_round']}, {scores}.")
    seconds, moved = summary["duration_seconds"], size(summary["bytes_moved"])
    console.print(f"{summary['rounds']} rounds in {seconds:.0f} s, {moved} moved.")
    console.print(f"Report: {plan.out / 'report' / 'report.html'}   Models: {plan.out / 'models'}{os.sep}")
