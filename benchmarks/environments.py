"""Environments of the benchmarks' own, in .bench/, for what fedstream itself does not need. Made once, then kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.floor import ROOT

FOLDER = ROOT / ".bench"
_INSTALL_SECONDS = 900.0


class CannotInstall(Exception):
    """Packages could not be installed. The message is pip's last words."""


def environment(name: str, *requirements: str) -> Path:
    """The Python of an environment in which `requirements` are installed.

    Raises:
        CannotInstall: they cannot be had here.
    """
    folder = FOLDER / name
    mark, wanted = folder / "installed", "\n".join(requirements)
    python = folder / "bin" / "python"
    if mark.exists() and mark.read_text() == wanted:
        return python
    print(f"  installing {', '.join(requirements)} into .bench/{name}", file=sys.stderr, flush=True)
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    mark.write_text(wanted)
    return python


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        raise CannotInstall(error.stderr.strip()[-500:]) from error
    except subprocess.TimeoutExpired as error:
        raise CannotInstall(f"{command[0]} took over {_INSTALL_SECONDS:.0f} s") from error
