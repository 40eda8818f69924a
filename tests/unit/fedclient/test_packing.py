"""Packing updates: once, on disk, again where damaged; and what encodings leave out, over the rounds. A moment."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from fedclient.models import LocalModel
from fedclient.packing import Packed, Packer
from fedclient.updates import FinishedUpdate, UpdateStore
from fedstream.body import BodyReader
from fedstream.dtypes import DataType
from fedstream.encodings import Encoded, Encoding, decode
from fedstream.files import RealFileSystem, write_durably
from fedstream.manifest import Digest, manifest_of, raw_bytes
from fedstream.schema import ModelSchema, TensorSpec
from fedstream.weights_file import WeightsFile, file_parts
from fedtask.messages import EntryRecord, LocalUpdate
from tests.unit.fedstream.examples import same_bits

pytestmark = pytest.mark.numpy_task

FILES = RealFileSystem()
SCHEMA = ModelSchema(
    (
        TensorSpec("kernel", DataType.FLOAT32, (40, 50)),
        TensorSpec("bias", DataType.FLOAT32, (50,)),
        TensorSpec("frozen", DataType.FLOAT32, (2000,), trainable=False),
    )
)
LOSSY = [encoding for encoding in Encoding if encoding.is_lossy]
Weights = dict[str, np.ndarray]


class Site:
    """A site's folder: a base model, and updates that start from it, each of the next round unless told otherwise."""

    def __init__(self, folder: Path, federation: str = "test") -> None:
        self.folder = folder
        self.updates = UpdateStore(folder / "updates", FILES)
        self.packer = Packer(self.updates, folder / "left_out.safetensors", federation, FILES)
        self.rounds = 0

    def model(self, weights: Weights) -> LocalModel:
        manifest, path = manifest_of(SCHEMA, weights), self.folder / "base.safetensors"
        write_durably(FILES, path, file_parts(manifest, weights))
        return LocalModel(path, manifest)

    def trained(
        self, offer_id: str, base: LocalModel, weights: Weights, round_number: int | None = None
    ) -> FinishedUpdate:
        self.rounds = round_number or self.rounds + 1
        known = base.manifest.by_name()
        changed = [entry for entry in manifest_of(SCHEMA, weights) if entry != known[entry.name]]
        parts = [weights[entry.name] for entry in changed]
        schema = ModelSchema(tuple(SCHEMA[entry.name] for entry in changed))
        named = {entry.name: part for entry, part in zip(changed, parts, strict=True)}
        write_durably(FILES, self.updates.weights_path(offer_id), file_parts(manifest_of(schema, named), named))
        update = LocalUpdate(tuple(map(EntryRecord.of, changed)), 10, {}, (), 1, 1.0)
        return self.updates.record(offer_id, self.rounds, base.digest, update)


def random_weights(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in SCHEMA}


def moved(weights: Weights, seed: int, by: float = 1e-3) -> Weights:
    rng = np.random.default_rng(seed)
    step = {
        name: rng.standard_normal(values.shape).astype(np.float32) * np.float32(by) for name, values in weights.items()
    }
    return {name: values + step[name] if SCHEMA[name].trainable else values for name, values in weights.items()}


def arrived(packed: Packed, base: LocalModel) -> Weights:
    """What a server makes of it."""
    started, values = WeightsFile(base.path).on_demand(), {}
    for entry in packed.manifest:
        encoded = packed.encoded.get(entry.name, Encoded(Encoding.RAW, entry.size_bytes))
        flat = started[entry.name].reshape(-1)
        path = base.path.with_name("part")
        with closing(BodyReader([packed.spans[entry.name]])) as body:
            path.write_bytes(body.read(0, body.size_bytes))
        with path.open("rb") as file:
            pieces = list(decode(encoded, file, entry, lambda begin, end, flat=flat: flat[begin:end]))  # type: ignore[misc]
        values[entry.name] = np.concatenate(pieces).reshape(entry.shape)
        assert Digest.of(raw_bytes(values[entry.name])) == entry.digest
    return values


@pytest.mark.parametrize("encoding", list(Encoding))
def test_packed_update_is_what_its_manifest_says_and_the_frozen_part_stays_at_home(
    tmp_path: Path, encoding: Encoding
) -> None:
    site, weights = Site(tmp_path), random_weights(1)
    base = site.model(weights)
    after = moved(weights, 2)
    packed = site.packer.pack(base, site.trained("o", base, after), encoding)
    values = arrived(packed, base)
    assert packed.spans["frozen"].path == base.path
    assert packed.manifest.by_name()["frozen"] == base.manifest.by_name()["frozen"]
    if encoding.is_lossy:
        assert set(packed.encoded) == {"kernel"}
        assert 0 < np.abs(values["kernel"] - after["kernel"]).max() < 2e-5
        assert same_bits({"bias": values["bias"]}, {"bias": after["bias"]})
    else:
        assert same_bits(values, after)


@pytest.mark.parametrize("encoding", [each for each in Encoding if each is not Encoding.RAW])
def test_update_is_packed_once_and_by_the_next_process_only_read(tmp_path: Path, encoding: Encoding) -> None:
    weights = random_weights(1)
    base = Site(tmp_path).model(weights)
    with capture_logs() as logs:
        first = Site(tmp_path).packer.pack(base, Site(tmp_path).trained("o", base, moved(weights, 2)), encoding)
        finished = Site(tmp_path).updates.load("o")
        assert finished is not None
        assert Site(tmp_path).packer.pack(base, finished, encoding) == first
    assert [entry["encoding"] for entry in logs if entry["event"] == "packed the update"] == [encoding.value]


@pytest.mark.parametrize("suffix", ["packed", "packed.json"])
def test_packed_update_that_was_damaged_is_packed_again_to_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    site, weights = Site(tmp_path), random_weights(1)
    base = site.model(weights)
    finished = site.trained("o", base, moved(weights, 2))
    first = site.packer.pack(base, finished, Encoding.INT8)
    path = site.updates.path("o", suffix)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with capture_logs() as logs:
        assert site.packer.pack(base, finished, Encoding.INT8) == first
    assert "packed again" in logs[0]["event"]
    arrived(first, base)


@pytest.mark.parametrize("encoding", LOSSY)
def test_what_is_left_out_comes_with_later_updates(tmp_path: Path, encoding: Encoding) -> None:
    """A step that the encoding cannot tell from nothing, beside large ones in the same block, arrives in the end."""
    site, weights = Site(tmp_path), random_weights(1)
    step = np.full((40, 50), 1e-6, np.float32)
    step[:, ::25] = 1e-2
    weights = {**weights, "kernel": np.zeros((40, 50), np.float32)}
    wanted = np.zeros((40, 50))
    for number in range(200):
        base = site.model(weights)
        finished = site.trained(f"o{number}", base, {**weights, "kernel": weights["kernel"] + step})
        weights = arrived(site.packer.pack(base, finished, encoding), base)
        site.packer.delivered(f"o{number}")
        wanted += step
    error = np.abs(weights["kernel"] - wanted)
    assert error.max() <= 1e-2 / 127  # one step of the code, however many rounds


def test_what_is_left_out_of_an_update_that_was_not_delivered_does_not_count(tmp_path: Path) -> None:
    site, weights = Site(tmp_path), random_weights(1)
    base = site.model(weights)
    site.packer.pack(base, site.trained("lost", base, moved(weights, 2)), Encoding.INT8)
    site.updates.keep_only(["next"])
    with_loss = site.packer.pack(base, site.trained("next", base, moved(weights, 3)), Encoding.INT8)
    other = Site(tmp_path / "other")
    base = other.model(weights)
    without = other.packer.pack(base, other.trained("next", base, moved(weights, 3)), Encoding.INT8)
    assert with_loss.manifest == without.manifest
    assert not (tmp_path / "left_out.safetensors").exists()


def test_what_is_left_out_survives_a_restart_and_neither_damage_nor_another_federation(tmp_path: Path) -> None:
    """Another one may have the same name: that has a default, and a server may begin anew with an empty folder."""
    site, weights = Site(tmp_path), random_weights(1)
    base = site.model(weights)
    site.packer.pack(base, site.trained("a", base, moved(weights, 2)), Encoding.INT8)
    site.packer.delivered("a")
    site.packer.delivered("a")  # a second time nothing
    left_out = (tmp_path / "left_out.safetensors").read_bytes()
    finished = site.trained("b", base, moved(weights, 3))

    def packed_by(site: Site) -> Packed:
        site.packer.discard("b")
        return site.packer.pack(base, finished, Encoding.INT8)

    expected = packed_by(Site(tmp_path)).manifest
    without = packed_by(Site(tmp_path, federation="another")).manifest
    assert expected != without
    begun_anew = site.trained("c", base, moved(weights, 3), round_number=1)
    assert Site(tmp_path).packer.pack(base, begun_anew, Encoding.INT8).manifest == without
    (tmp_path / "left_out.safetensors").write_bytes(left_out[:-1] + bytes([left_out[-1] ^ 1]))
    with capture_logs() as logs:
        assert packed_by(Site(tmp_path)).manifest == without
    assert "is lost" in logs[0]["event"]


@pytest.mark.parametrize("flaw", [np.nan, np.inf])
def test_update_that_is_no_number_travels_as_it_is_for_the_server_to_see(tmp_path: Path, flaw: float) -> None:
    site, weights = Site(tmp_path), random_weights(1)
    base = site.model(weights)
    after = moved(weights, 2)
    after["kernel"][3, 4] = flaw
    packed = site.packer.pack(base, site.trained("o", base, after), Encoding.INT8)
    assert packed.encoded == {}
    assert same_bits(arrived(packed, base), after)


def test_update_that_nobody_has_said_to_be_delivered_is_unsettled_until_it_is(tmp_path: Path) -> None:
    site, weights = Site(tmp_path), random_weights(1)
    base = site.model(weights)
    site.packer.pack(base, site.trained("a", base, moved(weights, 2)), Encoding.INT8, "upload-a")
    site.packer.pack(base, site.trained("b", base, moved(weights, 3)), Encoding.RAW, "upload-b")
    assert Site(tmp_path).packer.unsettled() == [("a", "upload-a")]
    site.packer.delivered("a")
    assert site.packer.unsettled() == []
