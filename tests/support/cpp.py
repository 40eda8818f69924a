"""The client in C++ as a process, for tests that skip where its compiler or packages are not there.

It is built once, into a folder that git ignores and that the next run finds: the first build takes a minute or two.
"""

from __future__ import annotations

import functools
import shutil
import subprocess

from filelock import FileLock

from tests.support.foreign import CLIENTS, ForeignClient

FOLDER = CLIENTS / "cpp"
BUILD = FOLDER / "build"
CLIENT = BUILD / "fedstream-client"
SLOW_CLIENT = BUILD / "fedstream-client-slow"
"""The same with a task that waits three seconds before it trains."""

_TOOLS = ("cmake", "c++", "protoc", "grpc_cpp_plugin")
_HEADERS = ("grpcpp/grpcpp.h", "google/protobuf/message.h", "openssl/ssl.h", "nlohmann/json.hpp", "CLI/CLI.hpp")
_PACKAGES = (
    "cmake g++ libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc libssl-dev "
    "nlohmann-json3-dev libcli11-dev"
)
_BUILD_SECONDS = 1_200


def missing() -> str:
    """Why the client cannot be built here; empty if it can."""
    tools = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if tools:
        return f"{', '.join(tools)} not on the PATH: apt-get install {_PACKAGES}"
    lines = "".join(f"#include <{header}>\n" for header in _HEADERS)
    words = ["c++", "-std=c++17", "-E", "-o", "/dev/null", "-x", "c++", "-"]
    checked = subprocess.run(words, input=lines.encode(), capture_output=True, check=False)
    if checked.returncode:
        return f"headers of gRPC, protobuf, OpenSSL, JSON or CLI11 are not there: apt-get install {_PACKAGES}"
    return ""


@functools.cache
def build() -> None:
    """Build what is not up to date. Two processes that test wait for one another."""
    BUILD.mkdir(exist_ok=True)
    with FileLock(BUILD / "lock"):
        for words in (["cmake", "-S", str(FOLDER), "-B", str(BUILD)], ["cmake", "--build", str(BUILD), "-j", "2"]):
            done = subprocess.run(words, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
            assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]


CPP = ForeignClient(
    language="cpp",
    folder=FOLDER,
    missing=missing,
    build=build,
    run=[str(CLIENT), "run"],
    slow=[str(SLOW_CLIENT), "run"],
    join=[str(CLIENT), "join"],
    own_tests=[["ctest", "--test-dir", str(BUILD), "--output-on-failure"]],
)
