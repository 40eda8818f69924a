"""The work of `benchmarks.arithmetic` as a training script of NVFLARE: `shift_client.py CLIENTS`, run by its client.

Runs in an environment that has nvflare.
"""

from __future__ import annotations

import sys

import nvflare.client as flare

from benchmarks.arithmetic import step_of


def main() -> None:
    """Until the job is over."""
    flare.init()
    number = int(flare.get_site_name().removeprefix("site-"))
    add = step_of(number, int(sys.argv[1]))
    while flare.is_running():
        model = flare.receive()
        trained = {name: values + add for name, values in model.params.items()}
        flare.send(flare.FLModel(params=trained, params_type=model.params_type))


if __name__ == "__main__":
    main()
