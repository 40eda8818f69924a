"""The machine and the versions that figures belong to."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = ("fedstream", "grpcio", "protobuf", "numpy", "google-crc32c")


def describe_machine(folder: Path) -> dict[str, object]:
    """Cores, memory, processor, kernel, load, and the disk that `folder` is on. Nothing that names the machine."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "cpu": _cpu_model(),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": _file_system(folder),
        "load": [round(load, 1) for load in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Python's version, and those of the packages that move and fold bytes."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    """Type and device of the mount that `folder` is below."""
    resolved, best = str(folder.resolve()), ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, place, kind, *_ = line.split()
        if (resolved + "/").startswith(place.rstrip("/") + "/") and len(place) > len(best[0]):
            best = (place, f"{kind} on {device}")
    return best[1]
