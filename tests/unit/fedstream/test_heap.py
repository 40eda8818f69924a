"""Heaps, seen from outside: in a process of its own, since heaps that are there stay. 1 s."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.numpy_task

COUNT_HEAPS = """
import ctypes, sys, tempfile, threading
from fedstream.heap import keep_few_heaps
if sys.argv[1] == "few":
    assert keep_few_heaps()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(6)
def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
libc.fclose.argtypes = [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().count(b"<heap nr="))
"""


FREE_BETWEEN_WHAT_STAYS = """
from fedstream.heap import give_back_freed_memory
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
pieces = [bytes(size) for _ in range(500) for size in (64 << 10, 1000)]
del pieces[::2]
before = resident()
give_back_freed_memory()
print(before - resident())
"""


ALLOCATE_A_CHUNK_TIME_AND_AGAIN = """
import resource, sys
from fedstream.heap import keep_few_heaps, keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_few_heaps() and keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytes(1 << 20)
before = faults()
for _ in range(100):
    several = [b"x" * (1 << 20) for _ in range(4)]
    del several
print(faults() - before)
"""


def heaps(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT_HEAPS, how], check=True, stdout=subprocess.PIPE, timeout=60)
    return int(done.stdout)


only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is about glibc's heaps")


@only_glibc
def test_threads_share_few_heaps_once_asked_to() -> None:
    assert heaps("many") > 2
    assert heaps("few") == 2


@only_glibc
def test_memory_that_was_freed_between_what_stays_is_given_back() -> None:
    code = [sys.executable, "-c", FREE_BETWEEN_WHAT_STAYS]
    done = subprocess.run(code, check=True, stdout=subprocess.PIPE, timeout=60)
    assert int(done.stdout) > 20 << 20  # of 31 MiB


@only_glibc
def test_a_chunk_is_put_where_the_last_one_was() -> None:
    def new_pages(how: str) -> int:
        code = [sys.executable, "-c", ALLOCATE_A_CHUNK_TIME_AND_AGAIN, how]
        return int(subprocess.run(code, check=True, stdout=subprocess.PIPE, timeout=60).stdout)

    assert new_pages("kept") < 4_000 < new_pages("given back")  # of 102,400 that they have together
