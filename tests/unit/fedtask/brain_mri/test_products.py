"""Products in bfloat16 while training: when they are used, and that nothing but training sees them. 20 s."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedtask.brain_mri.model import build_network
from fedtask.brain_mri.products import forward_in_bfloat16, multiplies_bfloat16
from fedtask.brain_mri.settings import read_brain_mri_settings
from fedtask.brain_mri.task import BrainMri
from fedtask.task import SiteOptions
from tests.support.brain_mri import SMALL, differing, ignore


@pytest.mark.parametrize(
    ("facts", "made_for_it"),
    [
        ("model name\t: x\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("flags\t\t: fpu avx512f avx512_bf16x\n", False),
        ("bugs\t\t: avx512_bf16\n", False),
        ("", False),
    ],
)
def test_processor_is_made_for_bfloat16_if_its_flags_say_so(tmp_path: Path, facts: str, made_for_it: bool) -> None:
    (tmp_path / "cpuinfo").write_text(facts)
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is made_for_it


def test_processor_without_facts_is_not_relied_on(tmp_path: Path) -> None:
    assert not multiplies_bfloat16(tmp_path / "cpuinfo")


def test_forward_is_near_that_of_the_model_which_stays_as_it_is() -> None:
    network = build_network(read_brain_mri_settings({**SMALL, "dropout": "0"}))
    features = np.random.default_rng(0).standard_normal((4, *network.upper.input.shape[1:])).astype(np.float32)
    exact = np.asarray(network.upper(features, training=False))
    rounded = np.asarray(forward_in_bfloat16(network.upper)(features))
    assert 0 < np.abs(rounded - exact).max() < 0.01
    assert {layer.dtype_policy.name for layer in network.upper.layers} == {"float32"}
    assert np.asarray(network.upper(features, training=False)).tobytes() == exact.tobytes()


def test_fine_tune_repeats_to_the_bit_and_ends_near_that_in_float32(phantom: Path) -> None:
    tasks = [BrainMri({**SMALL, "products": products}) for products in ("bfloat16", "bfloat16", "float32")]
    base = tasks[0].initial_weights(0, "random")
    plan = replace(tasks[0].default_plan(), epochs=2, batch_size=8, seed=5)
    for task in tasks:
        task.open_site(SiteOptions(phantom))
    one, again, exact = (task.fine_tune(base, plan, ignore) for task in tasks)
    assert differing(one.weights, again.weights) == []
    assert differing(one.weights, exact.weights) == differing(base, exact.weights)
    assert one.metrics["val_loss"] == pytest.approx(exact.metrics["val_loss"], abs=0.02)
