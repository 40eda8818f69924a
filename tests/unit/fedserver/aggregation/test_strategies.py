"""Weights by strategy. A moment."""

from __future__ import annotations

import pytest

from fedserver.aggregation import STRATEGIES, strategy_named


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("fedavg", [30.0, 10.0, 2.0]),
        ("uniform", [1.0, 1.0, 1.0]),
        ("rank_decay", [1.0, 0.1 / 1.1, 0.1 / 2.1]),
    ],
)
def test_weights_follow_the_formula(name: str, weights: list[float]) -> None:
    examples = [30, 10, 2]
    assert [strategy_named(name).weight(rank, n) for rank, n in enumerate(examples)] == weights


def test_registry_names_every_strategy_with_the_default_first() -> None:
    assert list(STRATEGIES) == ["fedavg", "uniform", "rank_decay"]
    assert all(strategy.name == name for name, strategy in STRATEGIES.items())


def test_unknown_strategy_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="unknown strategy 'fedavgm'; choose one of fedavg, uniform, rank_decay"):
        strategy_named("fedavgm")
