"""A training history on disk: the table, and the process that draws it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from PIL import Image

from fedtask.history import HistoryRow, read_csv, write_csv
from fedtask.history_picture import DrawingFailed, draw

ROWS: list[HistoryRow] = [
    {"epoch": 1, "round": 2, "loss": 0.5, "accuracy": None},
    {"round": 3, "epoch": 1, "loss": 0.25, "val_loss": 1e-07},
]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_csv_holds_every_column_and_leaves_missing_values_empty(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "history.csv")

    assert names_in(tmp_path) == ["history.csv"]
    assert (tmp_path / "history.csv").read_bytes() == (
        b"round,epoch,loss,accuracy,val_loss\r\n2,1,0.5,,\r\n3,1,0.25,,1e-07\r\n"
    )


def test_csv_without_an_epoch_is_a_header(tmp_path: Path) -> None:
    write_csv([], tmp_path / "history.csv")

    assert (tmp_path / "history.csv").read_bytes() == b"round,epoch\r\n"
    assert read_csv(tmp_path / "history.csv") == []


def test_csv_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "history.csv")

    assert read_csv(tmp_path / "history.csv") == [
        {"round": 2, "epoch": 1, "loss": 0.5, "accuracy": None, "val_loss": None},
        {"round": 3, "epoch": 1, "loss": 0.25, "accuracy": None, "val_loss": 1e-07},
    ]


async def test_drawing_leaves_one_picture_and_nothing_beside_it(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "history.csv")
    await draw(tmp_path / "history.csv", tmp_path / "history.png", "site: local training", hurry=False)

    with Image.open(tmp_path / "history.png") as image:
        assert image.size == (1440, 604)
    assert names_in(tmp_path) == ["history.csv", "history.png"]


async def test_drawing_that_fails_says_why_and_leaves_the_old_picture(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("round,epoch,loss\n1,1,much\n")
    (tmp_path / "history.png").write_bytes(b"old")

    with pytest.raises(DrawingFailed, match=r"drawing history\.png ended with status 1: ValueError: .*much"):
        await draw(tmp_path / "history.csv", tmp_path / "history.png", "", hurry=True)
    assert (tmp_path / "history.png").read_bytes() == b"old"


async def test_drawing_that_is_cancelled_ends_its_process(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "history.csv")
    drawing = asyncio.create_task(draw(tmp_path / "history.csv", tmp_path / "history.png", "", hurry=True))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    drawing.cancel()
    await asyncio.gather(drawing, return_exceptions=True)
    await asyncio.sleep(max(0.0, 2.0 - (time.monotonic() - started)))  # as long as a picture takes

    assert drawing.cancelled()
    assert not (tmp_path / "history.png").exists()
