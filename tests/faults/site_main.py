"""A client as a process of its own, to be killed: `fedclient run` but for the plots, which would be most of its work.

    python -m tests.faults.site_main '{"server": "127.0.0.1:8443", "name": "site-0", ...}'

The argument has the settings of `fedclient.config.ClientConfig`. Its exit codes are those of `fedclient run`.
"""

from __future__ import annotations

import json
import sys
from unittest import mock

from fedclient import command, workplace
from fedclient.config import ClientConfig
from fedclient.exit_codes import Stop
from tests.faults.sites import SpareTrainer


def main() -> None:
    """Take part until the end."""
    config = ClientConfig.model_validate(json.loads(sys.argv[1]))
    with mock.patch.object(workplace, "Trainer", SpareTrainer):
        try:
            command.run_client(config, log_json=True, log_level="info")
        except Stop as stop:
            print(stop.message, file=sys.stderr)
            sys.exit(stop.code)


if __name__ == "__main__":
    main()
