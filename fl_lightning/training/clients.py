"""Chooses how this machine trains the clients: in this process, or in all processes of the run."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.fabric import Fabric

from fl_lightning.config import TrainingConfig
from fl_lightning.data.client_data import CENTRAL_CLIENT, ClientData, pool_clients
from fl_lightning.federation.protocol import ClientTransport
from fl_lightning.module import LoraClientModule
from fl_lightning.training.data_parallel import DataParallelShard
from fl_lightning.training.local_clients import LocalClients
from fl_lightning.training.worker_processes import Parallelism, WorkerProcesses, pin_device


def make_clients(
    fabric: Fabric,
    module: LoraClientModule,
    data: Mapping[str, ClientData],
    training: TrainingConfig,
    *,
    parallelism: Parallelism = "clients",
    shard_base_model: bool = False,
    is_central: bool = False,
    memory_limit_mb: int | None = None,
) -> ClientTransport:
    """The clients on this process's device, or on the devices of all processes that `fabric` was launched with.

    Args:
        fabric: launched.
        module: around the PEFT model.
        data: {client_id: tokenized records}.
        training: the ``training`` block.
        parallelism: what several processes divide among them: the clients, or each micro-batch.
        shard_base_model: under ``data``, whether they divide the base model's weights as well.
        is_central: whether there is one more client, `CENTRAL_CLIENT`, with all records.
        memory_limit_mb: of each process; None sets no limit.

    Raises:
        ValueError: if the module was made with another learning rate or weight decay than `training` says.
    """
    module.set_rates(training.learning_rate, training.weight_decay)
    data = {**data, CENTRAL_CLIENT: pool_clients(data)} if is_central else data
    several = fabric.world_size > 1
    shard = DataParallelShard(fabric, shard_base_model) if several and parallelism == "data" else None
    local = LocalClients(pin_device(fabric), module, data, training, training.clients_at_once, shard, memory_limit_mb)
    return WorkerProcesses(fabric, local, parallelism) if several else local
