"""What is made of a federation that is over, and what of it is missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fedserver.results import Made, finish
from fedtask.report import FederationRecord
from fedtask.worker import WorkerCrashed
from tests.support.bench import Bench

pytestmark = pytest.mark.numpy_task


class Maker:
    """Stands in for the worker that exports and reports. What is in `fails` fails; `rendered` is what it was asked."""

    test_summary = None
    summary = None

    def __init__(self, *fails: object) -> None:
        self._fails = fails
        self.rendered: list[bool] = []
        self.models: list[str] = []
        self.descriptions: list[str] = []

    async def export(self, _weights: Path, folder: Path, stem: str) -> list[Path]:
        if stem in self._fails:
            raise WorkerCrashed("OSError: no space left")
        return [folder / "vanished"] if "files that vanish" in self._fails else [_written(folder / f"{stem}.bin")]

    async def render_report(self, record: FederationRecord, _folder: Path, *, pictures: bool) -> None:
        self.rendered.append(pictures)
        self.models = [file.name for file in record.model_files]
        self.descriptions = [file.description for file in record.model_files]
        if pictures in self._fails:
            raise WorkerCrashed("OverflowError: cannot convert float infinity to integer")


def _written(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"model")
    return path


async def finished(folder: Path, maker: Any, rounds_done: int = 1, **settings: Any) -> Made:
    async with Bench.running(folder / "state", "a", out=folder / "out", **settings) as bench:
        for number in range(1, rounds_done + 1):
            await bench.play(number)
        bench.federation.evaluator = maker
        return await finish(bench.federation, "all rounds done")


async def test_federation_of_which_all_is_made_misses_nothing(tmp_path: Path) -> None:
    maker = Maker()
    made = await finished(tmp_path, maker)
    assert (made, made.missing) == (
        Made(tmp_path / "out" / "report", tmp_path / "out" / "models", test=True, rounds=True),
        [],
    )
    assert (maker.rendered, maker.models) == ([True], ["GLOBAL_MODEL.bin", "GLOBAL_MODEL_last.bin"])


async def test_report_that_fails_with_pictures_is_made_without(tmp_path: Path) -> None:
    maker = Maker(True)
    with capture_logs() as logs:
        made = await finished(tmp_path, maker)
    assert (made.report, maker.rendered) == (tmp_path / "out" / "report", [True, False])
    assert "OverflowError" in next(line["error"] for line in logs if line["log_level"] == "error")


@pytest.mark.parametrize(("pictures", "tries"), [(True, [True, False]), (False, [False])])
async def test_report_that_cannot_be_made_is_missing(tmp_path: Path, pictures: bool, tries: list[bool]) -> None:
    maker = Maker(True, False)
    made = await finished(tmp_path, maker, pictures=pictures)
    assert (made.report, made.missing, maker.rendered) == (None, ["report"], tries)


@pytest.mark.parametrize(
    ("fails", "there"), [("GLOBAL_MODEL_last", ["GLOBAL_MODEL.bin"]), ("GLOBAL_MODEL", []), ("files that vanish", [])]
)
async def test_models_that_cannot_all_be_written_are_missing_and_the_rest_is_reported(
    tmp_path: Path, fails: str, there: list[str]
) -> None:
    maker = Maker(fails)
    made = await finished(tmp_path, maker)
    assert (made.models, made.missing, maker.models) == (None, ["models"], there)
    assert made.report == tmp_path / "out" / "report"


@pytest.mark.parametrize(
    ("rounds_done", "said"),
    [
        (0, ["initial model", "initial model"]),
        (1, ["best global model, of round 1", "last global model, of round 1"]),
    ],
)
async def test_model_files_are_said_to_be_what_they_are(tmp_path: Path, rounds_done: int, said: list[str]) -> None:
    maker = Maker()
    await finished(tmp_path, maker, rounds_done)
    assert maker.descriptions == said
