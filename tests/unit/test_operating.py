"""docs/operating.md and the systemd units say what the commands do."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fedclient.config import ClientConfig
from fedclient.doctor.checkup import checks_for as client_checks
from fedclient.exit_codes import ExitCode as ClientExit
from fedserver.config import ServerConfig
from fedserver.doctor.checkup import checks_for as server_checks
from fedserver.exit_codes import ExitCode as ServerExit

DOCS = Path(__file__).resolve().parents[2] / "docs"
UNITS = sorted((DOCS / "systemd").glob("*.service"))


def text() -> str:
    return (DOCS / "operating.md").read_text("utf-8")


def unit(path: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment]  # names as they are written
    parser.read(path)
    return dict(parser["Service"])


def runbook(heading: str) -> list[str]:
    """The checks named in the first column of the runbook's table with that heading."""
    table = text().split(f"| {heading} | if not ok |\n")[1].split("\n\n")[0]
    return [name for row in table.splitlines()[1:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_runbook_has_every_check_in_order() -> None:
    server = ServerConfig(metrics_listen="127.0.0.1:9464")
    site = ClientConfig(server="fl.example.org:8443", fingerprint="sha256:" + "0" * 64, data=None)

    assert runbook("check at a site") == [check.name for check in client_checks(site, model=True)]
    assert runbook("check at the server") == [check.name for check in server_checks(server)]


def settings_file(name: str) -> dict[str, object]:
    return tomllib.loads(
        re.sub(r"^    ", "", text().split(f"    # /etc/fedstream/{name}\n")[1].split("\n\n")[0], flags=re.MULTILINE)
    )


def test_settings_in_the_document_are_settings() -> None:
    server, site = settings_file("server.toml"), settings_file("site.toml")

    assert ServerConfig.model_validate(server).min_clients == 3
    assert set(site) <= set(ClientConfig.model_fields)
    assert (len(server), len(site)) == (7, 6)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_unit_starts_a_command_that_is_there(path: Path) -> None:
    program, command, *words = unit(path)["ExecStart"].split()
    shown = subprocess.run(
        [sys.executable, "-m", f"{Path(program).name}.cli", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert [word for word in words if word.startswith("--") and word not in shown.stdout] == []


def test_units_do_not_start_again_after_what_needs_a_person() -> None:
    server, site = (unit(DOCS / "systemd" / f"{name}.service") for name in ("fedserver", "fedclient"))
    again = {ServerExit.NO_SERVER}  # of other commands than `run`
    assert server["RestartPreventExitStatus"].split() == [str(code.value) for code in ServerExit if code not in again]
    back = {ClientExit.FINISHED, ClientExit.DEFECT, ClientExit.UNREACHABLE}
    stopped = {ClientExit.HUNG_UP, ClientExit.INTERRUPTED, ClientExit.TERMINATED}
    kept = [str(code.value) for code in ClientExit if code not in back | stopped]
    assert site["RestartPreventExitStatus"].split() == kept
    assert site["SuccessExitStatus"].split() == [str(code.value) for code in sorted(stopped)]
    assert server["KillSignal"] == "SIGKILL"
