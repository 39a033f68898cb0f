"""Data parallelism: several processes train the same cohort, each on a share of every micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

Item = TypeVar("Item")


@dataclass(frozen=True)
class DataParallelShard:
    """This process's share of every micro-batch, and of the base model if that is sharded too.

    Attributes:
        fabric: joins the processes.
        shards_base_model: whether each process holds a share of every frozen weight and gathers the rest layer by
            layer.
    """

    fabric: Fabric
    shards_base_model: bool = False

    def shard_base_model(self, model: Any) -> None:
        """Keep only this process's share of the base weights (FSDP, Zhao et al. 2023, arXiv 2304.11277).

        Adapters stay whole.
        """
        mesh = init_device_mesh(self.fabric.device.type, (self.fabric.world_size,))
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        adapters = {parameter for parameter in model.parameters() if parameter.requires_grad}
        block_names = set(getattr(base, "_no_split_modules", None) or ())
        for module in [m for m in base.modules() if type(m).__name__ in block_names]:
            fully_shard(module, mesh=mesh, ignored_params=adapters)
        fully_shard(base, mesh=mesh, ignored_params=adapters)

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.fabric.global_rank

    def local_batch(self, clients: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """Every world_size-th example of each client, starting at `rank`."""
        return [list(batch[self.rank :: self.fabric.world_size]) for batch in clients]

    def all_reduce_sum(self, losses: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        """Sum the gradients over the processes in place, and return the summed losses."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([losses.flatten().to(gradients[0].dtype), *(g.flatten() for g in gradients)])
        summed = self.fabric.all_reduce(flat, reduce_op="sum")
        parts = torch.split(summed, [losses.numel(), *(g.numel() for g in gradients)])  # type: ignore[arg-type]
        for parameter, part in zip(parameters, parts[1:], strict=True):
            parameter.grad = part.view_as(parameter)
        return parts[0].view_as(losses)
