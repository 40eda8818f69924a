"""Hand NVFLARE's server a job and wait for its end: `submit.py KIT CLIENTS MIB ROUNDS PROGRESS`.

KIT is the administrator's startup kit. Runs in an environment that has nvflare.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from nvflare.apis.job_def import RunStatus
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import FrameworkType, ScriptRunner
from shift_persistor import ShiftPersistor

_CLIENT = Path(__file__).with_name("shift_client.py")
_START_SECONDS = 120.0


def main(kit: str, clients: int, mib: float, rounds: int, progress: str) -> str:
    """Return how the job ended, with the errors in its log if not well."""
    session = new_secure_session(Path(kit).name, kit, timeout=_START_SECONDS)
    try:
        _await_clients(session, clients)
        with tempfile.TemporaryDirectory() as folder:
            job = _job(clients, mib, rounds, progress)
            job.export_job(folder)
            job_id = session.submit_job(str(Path(folder) / job.name))
        status = str(session.wait_for_job(job_id)["status"])
        if status == RunStatus.FINISHED_COMPLETED.value:
            return status
        return f"{status} {session.get_job_logs(job_id, grep_pattern='ERROR')['logs']}"
    finally:
        session.close()


def _await_clients(session: Session, count: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while len(session.get_system_info().client_info) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{count} clients were due at the server")
        time.sleep(0.5)


def _job(clients: int, mib: float, rounds: int, progress: str) -> FedJob:
    job = FedJob(name="shift", min_clients=clients)
    job.to_server(ShiftPersistor(mib, rounds, progress), id="persistor")
    job.to_server(FedAvg(num_clients=clients, num_rounds=rounds))
    script = ScriptRunner(str(_CLIENT), script_args=str(clients), framework=FrameworkType.NUMPY)
    job.to_clients(script)
    return job


if __name__ == "__main__":
    kit_, clients_, mib_, rounds_, progress_ = sys.argv[1:]
    print(main(kit_, int(clients_), float(mib_), int(rounds_), progress_))
