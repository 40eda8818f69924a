"""Whole rounds of other systems, beside fedstream's, on the same work: NVFLARE and Flower.

Each is installed into an environment of its own. What runs there (`nvflare_ends`, `flower_app`, `progress`) imports
this package without anything that fedstream needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.options import Options
    from benchmarks.tables import Table


def run(options: Options) -> Table:
    """Measure all of them."""
    from benchmarks.peers.comparison import compare  # only here, see above

    return compare(options)
