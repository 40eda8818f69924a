"""All parts of `make bench`, or those that are named: tables, and JSON in benchmarks/results/latest.json.

    python -m benchmarks rounds --sizes 4x9 32x100 --repeats 3

Everything is on loopback and on one machine, so figures hold for it alone; ratios travel better. Let nothing else run.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.options import Options
from benchmarks.rows import Size
from benchmarks.tables import Table, keep, show

PARTS: Mapping[str, str] = {
    "rounds": "rounds of a whole federation, against the same bytes through bare sockets and files",
    "peers": "the same rounds of NVFLARE and Flower, each in an environment that is made for it in .bench/",
    "upload": "one upload stream, against a plain file and against Arrow Flight",
    "publish": "how long the new model takes after the last update, against writing one model",
    "sites": "a thousand connected sites: what they cost while they wait, and a round of all of them",
    "frozen": "what a round moves where a small part of the model is trained, as a share of the model",
    "scaling": "rounds of more and more clients and of larger and larger models, in a table and a picture",
    "training": "local training on brain MRI with kept features, against Keras's own `fit` on the whole network",
    "encodings": "what encodings of updates save, and what they cost in accuracy on brain MRI",
    "languages": "whether the model is as good where each of four sites has a client in another language",
    "start": "how long a person waits for a server's first answer and for --help",
}


def main() -> None:
    """Run them, one after the other."""
    # As Ctrl-C does: what a part has started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = "; ".join(f"{name}: {words}" for name, words in PARTS.items())
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which; by default all. {listed}")
    parser.add_argument("--sizes", nargs="+", default=[], metavar="NxMIB", help="clients and model, such as 32x100")
    parser.add_argument("--rounds", type=int, help="rounds measured in each run, by default 3, or 2 of large models")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each thing, in turn [%(default)s]")
    parser.add_argument("--sites", type=int, default=1000, help="how many wait in the part `sites` [%(default)s]")
    parser.add_argument("--seeds", type=int, default=1, help="federations in `encodings` and `languages` [%(default)s]")
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    try:
        for text in given.sizes:
            Size.parse(text)
    except ValueError as error:
        parser.error(str(error))
    options = Options(given.repeats, given.rounds, given.sizes, Path(tempfile.gettempdir()), given.sites, given.seeds)
    tables = {name: _run(name, options) for name in given.parts or PARTS}
    print(f"kept in {keep(tables, sys.argv[1:])}")


def _run(name: str, options: Options) -> Table:
    print(f"{name}: {PARTS[name]}", file=sys.stderr, flush=True)
    started = time.monotonic()
    table: Table = importlib.import_module(f"benchmarks.{name}").run(options)
    options.say(f"{name} took {time.monotonic() - started:.0f} s")
    show(table)
    return table


if __name__ == "__main__":
    main()
