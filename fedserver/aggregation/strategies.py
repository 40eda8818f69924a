"""How much each update counts. A strategy gives an update a weight; the aggregate is the weighted mean

    global = sum_i(w_i * x_i) / sum_i(w_i),   i over the updates that are in, tensor by tensor.

- `fedavg`: w_i = n_i, the number of examples client i trained on. McMahan, Moore, Ramage, Hampson and Aguera y Arcas,
  "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1:
  w_{t+1} = sum_k (n_k / n) w^k_{t+1}.
- `uniform`: w_i = 1.
- `rank_decay`: w_i = 0.1 / (i + 0.1), i the rank.

The rank is the position in the cohort, counted from 0 and fixed when the offers are made. A client that drops out
leaves a gap: the others keep their ranks, and so their weights, and only the sum of weights that divides changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol


class Strategy(Protocol):
    """Gives every update its weight before any other update is known. Stateless."""

    @property
    def name(self) -> str:
        """What users write: `fedavg`."""

    def weight(self, rank: int, num_examples: int) -> float:
        """The weight, a finite float64 above 0 that never falls when `num_examples` grows.

        `rank` counts from 0; `num_examples` is 1 or more. The same arguments always give the same bits.
        """


class FedAvg:
    """Weight by examples; the default."""

    name = "fedavg"

    def weight(self, rank: int, num_examples: int) -> float:
        """`num_examples`, exactly (below 2**53)."""
        return float(num_examples)


class Uniform:
    """Every update counts the same."""

    name = "uniform"

    def weight(self, rank: int, num_examples: int) -> float:
        """1.0."""
        return 1.0


class RankDecay:
    """The first in the cohort counts most: 1, 0.0909, 0.0476, ... before normalising."""

    name = "rank_decay"

    def weight(self, rank: int, num_examples: int) -> float:
        """0.1 / (rank + 0.1)."""
        return 0.1 / (rank + 0.1)


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {strategy.name: strategy for strategy in (FedAvg(), Uniform(), RankDecay())}
)
"""Every strategy by its name, the default first."""


def strategy_named(name: str) -> Strategy:
    """The strategy that users call `name`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    try:
        return STRATEGIES[name]
    except KeyError:
        raise ValueError(f"unknown strategy {name!r}; choose one of {', '.join(STRATEGIES)}") from None
