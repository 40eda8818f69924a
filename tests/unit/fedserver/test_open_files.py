"""The limit of open files, in a process of its own, since a hard one cannot be taken back. A moment."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.numpy_task

CODE = """
import resource
from fedserver.open_files import allow_many_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(allow_many_open_files(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard"), [(256, 700), (700, 700)])
def test_open_files_as_many_as_the_system_lets_a_process_have(soft: int, hard: int) -> None:
    command = [sys.executable, "-c", CODE.format(soft=soft, hard=hard)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["700", "700", "700"]
