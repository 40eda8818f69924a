"""What the server's doctor says of the images that models are scored on. A moment."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from fedserver.config import ServerConfig
from fedserver.doctor import data
from fedserver.store import State
from fedstream.checkup.runner import Verdict

pytestmark = pytest.mark.numpy_task


def test_no_test_images_are_no_harm_and_what_is_said_of_scores_is_so(tmp_path: Path) -> None:
    config = ServerConfig(task="linear", state=tmp_path)
    with closing(State(tmp_path)):
        served = data.test(config)
    found = [data.test(config), data.test(config.model_copy(update={"holdout": "phantom"})), served]
    assert {one.verdict for one in found} == {Verdict.OK}
    assert [one.found for one in found] == [
        "none: the final model is not scored",
        "none: best round and final score come from the same holdout",
        "none is given here; the server that runs has settings of its own",
    ]
