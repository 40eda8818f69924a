"""A model on its way: what an earlier try has left, what need not travel, and what a power cut does to it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from fedclient.models import DamagedTensor, ModelStore
from fedclient.partial import PartialModel
from fedstream.body import make_chunk
from fedstream.dtypes import DataType
from fedstream.errors import TransportError
from fedstream.files import FileSystem, RealFileSystem
from fedstream.manifest import Digest, Manifest, manifest_of, raw_bytes
from fedstream.schema import ModelSchema, TensorSpec
from fedstream.weights_file import FileSpan, WeightsFile, file_parts, header_of
from tests.faults.forgetful import ForgetfulFileSystem, Power, PowerCut, Survival

FILES = RealFileSystem()
CHUNK = 700
SCHEMA = ModelSchema(
    (
        TensorSpec("none", DataType.FLOAT32, (0, 4)),
        TensorSpec("a", DataType.FLOAT32, (301,)),
        TensorSpec("frozen", DataType.FLOAT32, (500,), trainable=False),
        TensorSpec("scalar", DataType.FLOAT64, ()),
        TensorSpec("b", DataType.FLOAT32, (20, 20)),
        TensorSpec("nothing", DataType.FLOAT32, (0,)),
    )
)
WEIGHTS = {spec.name: np.random.default_rng(3).standard_normal(spec.shape).astype(spec.dtype.numpy) for spec in SCHEMA}
MANIFEST = manifest_of(SCHEMA, WEIGHTS)
WHOLE = b"".join(bytes(part) for part in file_parts(MANIFEST, WEIGHTS))
HEADER_BYTES = len(header_of(MANIFEST))


def partial_at(
    path: Path, known: Mapping[Digest, FileSpan] | None = None, files: FileSystem = FILES, manifest: Manifest = MANIFEST
) -> PartialModel:
    partial = PartialModel(manifest, path, files, known or {})
    partial.open()
    return partial


def body_of(partial: PartialModel) -> bytes:
    entries = MANIFEST.entries
    return b"".join(bytes(raw_bytes(WEIGHTS[entries[index].name])) for index in partial.lacking)


def feed(partial: PartialModel, until: int | None = None) -> int:
    """Give it the body from where it is, in chunks; returns the bytes given."""
    body, begin = body_of(partial), partial.kept
    end = len(body) if until is None else until
    for offset in range(begin, end, CHUNK):
        partial.take(make_chunk(offset, body[offset : min(offset + CHUNK, end)]))
    return end - begin


def source_of(path: Path, *names: str) -> dict[Digest, FileSpan]:
    """A file that has these tensors, and where."""
    path.write_bytes(WHOLE)
    spans, by_name = WeightsFile(path), MANIFEST.by_name()
    return {by_name[name].digest: spans.span(name) for name in names}


def test_partial_model_fed_with_its_body_is_the_weights_file(tmp_path: Path) -> None:
    partial = partial_at(tmp_path / "p")
    feed(partial)
    partial.close()

    assert (tmp_path / "p").read_bytes() == WHOLE


@pytest.mark.parametrize("stop", range(0, 4412, 401))
def test_partial_model_opened_again_goes_on_where_it_was(tmp_path: Path, stop: int) -> None:
    partial = partial_at(tmp_path / "p")
    feed(partial, stop)
    partial.close()
    again = partial_at(tmp_path / "p")
    assert (again.kept, again.size_bytes) == (stop, len(WHOLE) - HEADER_BYTES)
    feed(again)
    again.close()

    assert (tmp_path / "p").read_bytes() == WHOLE


def test_partial_model_copies_what_is_known_and_asks_for_the_rest(tmp_path: Path) -> None:
    partial = partial_at(tmp_path / "p", source_of(tmp_path / "source", "frozen", "b"))
    given = feed(partial)
    partial.close()

    assert [MANIFEST.entries[index].name for index in partial.lacking] == ["a", "scalar"]
    assert given == 301 * 4 + 8
    assert (tmp_path / "p").read_bytes() == WHOLE


@pytest.mark.parametrize(("before", "after"), [((), ("frozen",)), (("frozen",), ()), (("a",), ("frozen", "b"))])
def test_partial_model_opened_again_with_other_models_beside_it_is_the_same_file(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    partial = partial_at(tmp_path / "p", source_of(tmp_path / "source", *before))
    feed(partial, 1000)  # in the middle of a tensor, and for some cases of one that is known later
    partial.close()
    again = partial_at(tmp_path / "p", source_of(tmp_path / "source", *after))
    feed(again)
    again.close()

    assert (tmp_path / "p").read_bytes() == WHOLE


def test_partial_model_whose_tensors_are_all_known_is_whole_at_once(tmp_path: Path) -> None:
    partial = partial_at(tmp_path / "p", source_of(tmp_path / "source", *(spec.name for spec in SCHEMA)))
    partial.close()

    assert (partial.kept, partial.size_bytes) == (0, 0)
    assert (tmp_path / "p").read_bytes() == WHOLE


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"\0" * len(data),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[: HEADER_BYTES + 9] + bytes([data[HEADER_BYTES + 9] ^ 1]) + data[HEADER_BYTES + 10 :],
        lambda data: WHOLE + b"more",
    ],
    ids=["zeros", "header", "tensor", "too long"],
)
def test_partial_model_that_was_kept_damaged_begins_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "p"
    path.write_bytes(damage(WHOLE[: HEADER_BYTES + 2000]))
    with capture_logs() as logs:
        partial = partial_at(path)
    assert (partial.kept, len(logs)) == (0, 1)
    feed(partial)
    partial.close()

    assert path.read_bytes() == WHOLE


def test_partial_model_damaged_in_the_tensor_at_work_says_so_when_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes(WHOLE[: HEADER_BYTES + 99] + b"?")
    partial = partial_at(path)

    assert partial.kept == 100
    with pytest.raises(DamagedTensor, match="tensor a does not match its digest"):
        feed(partial)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1] + b"?", "tensor b does not match its digest"),
        (lambda data: data[:-5], "tensor b is cut short where it was to be copied from"),
    ],
)
def test_partial_model_whose_source_is_damaged_says_so(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    known = source_of(tmp_path / "source", "b")
    (tmp_path / "source").write_bytes(damage(WHOLE))
    partial = partial_at(tmp_path / "p", known)

    with pytest.raises(DamagedTensor, match=message):
        feed(partial)


def test_partial_model_given_a_later_chunk_keeps_nothing(tmp_path: Path) -> None:
    partial = partial_at(tmp_path / "p")

    with pytest.raises(TransportError, match="the chunk starts at 700 but 0 bytes are committed"):
        partial.take(make_chunk(CHUNK, body_of(partial)[CHUNK : 2 * CHUNK]))
    assert partial.kept == 0


def test_partial_model_that_was_closed_writes_nothing_more(tmp_path: Path) -> None:
    partial = partial_at(tmp_path / "p")
    partial.close()
    partial.close()

    with pytest.raises(TransportError, match="given up"):
        feed(partial)
    assert (tmp_path / "p").stat().st_size == HEADER_BYTES


# --- Power cuts ---


def download(folder: Path, files: FileSystem) -> int:
    """What a client does from its start until it has the model; returns the bytes that had to travel."""
    store = ModelStore(folder, files)
    store.load()
    digest = MANIFEST.model_digest()
    if store.get(digest) is not None:
        return 0
    partial = PartialModel(MANIFEST, store.partial_path(digest), files, store.tensors())
    try:
        partial.open()
        given = feed(partial)
    finally:
        partial.close()
    store.adopt(MANIFEST)
    return given


def count_steps(folder: Path) -> int:
    power = Power()
    download(folder, ForgetfulFileSystem(power))
    return len(power.steps)


@pytest.mark.parametrize("survival", Survival)
def test_power_cut_at_any_step_of_a_download_costs_a_download_at_most(tmp_path: Path, survival: Survival) -> None:
    num_steps = count_steps(tmp_path / "count")
    for step, after in itertools.product(range(num_steps), (False, True)):
        folder = tmp_path / f"{step}-{after}"
        power = Power(step, after=after)
        files = ForgetfulFileSystem(power)
        with pytest.raises(PowerCut):
            download(folder, files)
        files.lose_power(survival, random.Random(step))

        assert download_through_damage(folder) <= 2 * len(WHOLE)
        assert (folder / f"{MANIFEST.model_digest().hex}.safetensors").read_bytes() == WHOLE
    assert num_steps > 8


@pytest.mark.parametrize("survival", [Survival.SYNCED_ONLY, Survival.NAMES_ONLY, Survival.TORN])
def test_power_cut_after_a_download_leaves_no_model_that_is_not_what_its_name_says(
    tmp_path: Path, survival: Survival
) -> None:
    files = ForgetfulFileSystem(Power())
    download(tmp_path, files)
    files.lose_power(survival, random.Random(1))
    store = ModelStore(tmp_path, FILES)
    store.load()

    assert store.get(MANIFEST.model_digest()) is None
    assert list(tmp_path.glob("*.safetensors")) == []


def download_through_damage(folder: Path) -> int:
    """Download, and once more from the start if what the power cut has left turns out to be damaged only then."""
    try:
        return download(folder, FILES)
    except DamagedTensor:
        ModelStore(folder, FILES).drop_partials()
        return len(WHOLE) + download(folder, FILES)
