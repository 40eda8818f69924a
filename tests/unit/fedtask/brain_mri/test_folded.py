"""The network laid out for training: the same function and gradients, with bfloat16 near them. 30 s."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from fedtask.brain_mri.folded import folded, multiplies_bfloat16
from fedtask.brain_mri.model import Network, build_network
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


@pytest.mark.parametrize("fine_tune", ["all", "upper", "block_13_project_BN", "head"])
@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_outputs_and_gradients_are_those_of_the_model(fine_tune: str, batch_norm: str) -> None:
    network = _network(fine_tune=fine_tune, batch_norm=batch_norm)
    features = _features(network)
    outputs, gradients = _outputs_and_gradients(network, network.upper, features)
    fast_outputs, fast_gradients = _outputs_and_gradients(network, folded(network.upper), features)
    np.testing.assert_allclose(fast_outputs, outputs, rtol=1e-5)
    # Sums behind a BatchNorm that is trained cancel out, and what is left of them is rounding.
    largest = max(np.abs(gradient).max() for gradient in gradients)
    for gradient, fast_gradient in zip(gradients, fast_gradients, strict=True):
        np.testing.assert_allclose(fast_gradient, gradient, rtol=1e-3, atol=1e-4 * largest)


def test_changes_of_the_variables_are_seen_and_the_model_stays_as_it_is() -> None:
    network = _network(fine_tune="upper", batch_norm="frozen")
    features, fast = _features(network), folded(network.upper)
    names = [variable.path for variable in network.full.weights]
    for variable in network.upper.weights:
        variable.assign(np.abs(variable.value.numpy()) * 0.5 + 0.1)
    np.testing.assert_allclose(fast(features, training=True), network.upper(features), rtol=1e-5)
    assert [variable.path for variable in network.full.weights] == names


def test_products_in_bfloat16_are_near_and_only_in_training() -> None:
    network = _network(fine_tune="upper", batch_norm="frozen")
    features = _features(network)
    exact = np.asarray(network.upper(features))
    rounded = np.asarray(folded(network.upper, tf.bfloat16)(features, training=True))
    assert 0 < np.abs(rounded - exact).max() < 0.01
    assert np.asarray(network.upper(features)).tobytes() == exact.tobytes()


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


def _network(**settings: str) -> Network:
    """A small one without dropout, with BatchNorms that do something."""
    network = build_network(read_brain_mri_settings({**SMALL, "dropout": "0", **settings}))
    rng = np.random.default_rng(1)
    for variable in network.full.weights:
        if "moving_variance" in variable.path or "gamma" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif "moving_mean" in variable.path or "beta" in variable.path:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    return network


def _features(network: Network) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, *network.upper.input.shape[1:])).astype(np.float32)


def _outputs_and_gradients(network: Network, model: Any, features: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    before = [np.array(variable.value.numpy()) for variable in network.full.weights]
    with tf.GradientTape() as tape:
        outputs = model(features, training=True)
        loss = tf.reduce_mean(tf.square(outputs - 0.3))
    gradients = tape.gradient(loss, network.upper.trainable_variables)
    for variable, value in zip(network.full.weights, before, strict=True):
        variable.assign(value)  # moving statistics are changed by either
    return np.asarray(outputs), [np.asarray(gradient) for gradient in gradients]
