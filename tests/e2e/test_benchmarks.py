"""The parts of `make bench` that no other test runs, at the smallest size: they end, and find what must be so. 60 s."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import encodings, frozen, publish, scaling_picture, sites, training
from benchmarks.floor import measure_floor
from benchmarks.options import Options
from benchmarks.points import Point
from benchmarks.rows import Row, Security, Size
from benchmarks.scans import find_scans
from fedstream.encodings import Encoding
from fedtask.brain_mri.settings import UPPER
from fedtask.brain_mri.training import Training

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

MODEL_BYTES = 260 * 35 * 1024 + 1281 * 4


def test_sites_wait_have_their_offers_and_play_each_round(tmp_path: Path) -> None:
    found = sites.measure(Row(Size(6, 0.25), Security.MUTUAL_TLS), 2, tmp_path, wait_seconds=0.2)
    assert 0 < found.offering_seconds < found.rounds_seconds[0]
    assert len(found.rounds_seconds) == 2
    assert min(found.waiting.resident, found.working.resident, found.joining_seconds, found.server_cpu_seconds) > 0


async def test_frozen_model_counts_the_trained_part_each_way_and_the_rest_of_the_wire(tmp_path: Path) -> None:
    found = await frozen.measure(tmp_path, rounds=1)
    trained = 2 * 1281 * 4
    assert found.weights == [frozen.Moved(down=trained, up=trained)]
    assert all(trained < moved < MODEL_BYTES for moved in (found.wire.down, found.wire.up))


def test_publish_ends_with_the_right_model(tmp_path: Path) -> None:
    table = publish.run(Options(1, None, ["2x1"], tmp_path, 1))
    assert [line.name for line in table.lines] == ["2 x 1 MiB"]


@pytest.mark.parametrize("security", list(Security))
def test_floor_many_clients_share_processes(tmp_path: Path, security: Security) -> None:
    assert len(measure_floor(Row(Size(40, 0.25), security), 2, tmp_path)) == 2
    assert list(tmp_path.iterdir()) == []


def test_encodings_updates_of_a_federation_shrink_and_arrive_as_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSTREAM_SHARED", str(tmp_path))  # without scans: the phantom
    # A part of the network: to trace the gradients of all of it takes a quarter of a minute.
    short = {"epochs": "1", "phantom_images": "40", "fine_tune": UPPER, "batch_norm": "frozen"}
    scans = find_scans(tmp_path, short)
    network = Training(scans.settings)
    found = encodings.measure(network, scans, 0, Encoding.INT8, 2, tmp_path / "run", clients=2)
    raw = sum(spec.size_bytes for spec in network.network.schema if spec.trainable)
    assert 0 < found.mean_bytes[Encoding.INT8_ZSTD] < found.mean_bytes[Encoding.INT8] < raw / 3
    assert 0 <= found.accuracy <= 1


def test_training_both_ways_are_timed_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSTREAM_SHARED", str(tmp_path))
    monkeypatch.setitem(training.SETTINGS, "phantom_images", "40")
    table = training.run(Options(1, None, [], tmp_path, 1))
    ways = ["model.fit", "features kept, float32", "features kept"]
    assert [line.name for line in table.lines if "faster" not in line.name] == ways
    assert all(line.figures["images/s"] > 0 for line in table.lines)


def test_scaling_one_size_alone_can_be_drawn(tmp_path: Path) -> None:
    scaling_picture.draw([Point(Size(1, 1), is_bare=False, seconds=[0.5])], tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_size_a_part_of_a_mebibyte_is_read_and_shown() -> None:
    size = Size.parse("1000x0.25")
    assert (size.clients, size.num_bytes, str(size)) == (1000, 256 * 1024, "1000 x 0.25 MiB")
    with pytest.raises(ValueError, match="is no size"):
        Size.parse("4x0.0001")
