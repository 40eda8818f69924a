"""The work of `benchmarks.arithmetic` as an app of Flower. Runs in an environment that has flwr."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.arithmetic import initial_model, step_of
from benchmarks.peers.progress import Progress

server = ServerApp()
client = ClientApp()


class WatchedFedAvg(FedAvg):
    """FedAvg without evaluation, among exactly so many clients, that tells `progress` of each aggregation."""

    def __init__(self, clients: int, progress: Progress) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self._progress = progress

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        aggregated = super().aggregate_train(server_round, replies)
        self._progress.aggregated()
        return aggregated


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Run all rounds, and check the last model."""
    order = context.run_config
    clients, rounds, progress = int(order["clients"]), int(order["rounds"]), Progress(Path(str(order["progress"])))
    initial = _record(initial_model(float(order["mib"])))
    result = WatchedFedAvg(clients, progress).start(grid, initial, num_rounds=rounds)
    progress.finished({name: array.numpy() for name, array in result.arrays.items()}, rounds)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Add what this client adds."""
    add = step_of(int(context.node_config["number"]), int(context.run_config["clients"]))
    arrays = message.content["arrays"]
    trained = _record({name: array.numpy() + add for name, array in arrays.items()})
    content = RecordDict({"arrays": trained, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


def _record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(values) for name, values in arrays.items()})
