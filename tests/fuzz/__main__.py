"""Fuzz every reader of what comes from the network, each with its share of the inputs; status 1 if one has a defect.

    python -m tests.fuzz --count 2000000 --seed 0 put_manifest decode_int8

atheris, which finds new inputs by what code they reach, is installed into an environment of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import environment
from benchmarks.floor import ROOT
from tests.fuzz.targets import TARGETS

_MEMORY_MIB = 1024
"""Of the whole process; half of it is libraries."""

_INPUT_SECONDS = 5
_LONGEST_INPUT = 64 << 10


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one target. `defect` is the end of the log if there was one."""

    inputs: int
    peak_mib: int
    seconds: float
    defect: str


def main() -> None:
    """Run the targets, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"which; by default all: {', '.join(TARGETS)}")
    parser.add_argument("--count", type=int, default=2_000_000, help="inputs in all [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of everything random [%(default)s]")
    given = parser.parse_args()
    if unknown := set(given.targets) - TARGETS.keys():
        parser.error(f"no target is called {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    names = given.targets or list(TARGETS)
    python = environment("fuzz", "atheris")
    found = {name: _fuzz(python, name, -(-given.count // len(names)), given.seed) for name in names}
    print(f"inputs in all: {sum(one.inputs for one in found.values()):,}")
    sys.exit(any(one.defect for one in found.values()))


def _fuzz(python: Path, name: str, count: int, seed: int) -> Found:
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as folder:
        for number, content in enumerate(TARGETS[name].seeds):
            (Path(folder) / f"seed-{number}").write_bytes(content)
        found = _drive(python, name, folder, count, seed)
    words = found.defect or "no defect"
    print(f"{name:<22} {found.inputs:>9,} inputs {found.seconds:>5.0f} s  {found.peak_mib:>4} MiB  {words}", flush=True)
    return found


def _drive(python: Path, name: str, folder: str, count: int, seed: int) -> Found:
    # The project and its libraries come from the environment that runs this.
    paths = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    # 0 would mean: draw a seed. A reader of 1 GiB or of five seconds is a defect as much as one that raises.
    options = [
        f"-runs={count}",
        f"-seed={seed + 1}",
        f"-max_len={_LONGEST_INPUT}",
        f"-timeout={_INPUT_SECONDS}",
    ]
    options += [f"-rss_limit_mb={_MEMORY_MIB}", f"-artifact_prefix={folder}/", "-print_final_stats=1"]
    command = [str(python), "-m", "tests.fuzz.drive", name, folder, *options]
    started = time.monotonic()
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    log = ended.stdout + ended.stderr
    stats = dict(re.findall(r"^stat::(\w+):\s+(\d+)", log, re.MULTILINE))
    inputs, peak_mib = int(stats.get("number_of_executed_units", 0)), int(stats.get("peak_rss_mb", 0))
    defect = "" if ended.returncode == 0 else f"DEFECT, status {ended.returncode}\n{log[-3000:]}"
    return Found(inputs, peak_mib, time.monotonic() - started, defect)


if __name__ == "__main__":
    main()
