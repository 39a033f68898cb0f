"""The ``training`` and ``fabric`` blocks: a client's fit, and the devices that it runs on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from fl_lightning.config.checks import at_least, check, check_null, one_of, positive
from fl_lightning.errors import InputError


@dataclass
class TrainingConfig:
    """One client's fit in one round."""

    local_epochs: int = 1
    """Passes over the client's records."""
    learning_rate: float = 2e-4
    """Of AdamW, constant."""
    batch_size: int = 4
    """Records in a micro-batch."""
    accumulate_grad_batches: int = 1
    """Micro-batches in an optimizer step; the last, partial window steps too."""
    max_grad_norm: float = 1.0
    """Clip each client's gradient to this norm; 0 turns it off."""
    weight_decay: float = 0.0
    """Of AdamW, on the LoRA factors."""
    proximal_mu: float = 0.0
    """FedProx: adds proximal_mu / 2 times the squared distance from the start to each client's loss; 0 turns it off."""
    clients_at_once: int | Literal["auto"] = "auto"
    """Clients trained together in one forward pass, or auto."""
    gradient_checkpointing: bool = False
    """Keep the layers' inputs only and run them again in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "training.")
        at_least("training.local_epochs", self.local_epochs, 1)
        positive("training.learning_rate", self.learning_rate)
        at_least("training.batch_size", self.batch_size, 1)
        at_least("training.accumulate_grad_batches", self.accumulate_grad_batches, 1)
        for key in ("max_grad_norm", "weight_decay", "proximal_mu"):
            value = getattr(self, key)
            check(math.isfinite(value) and value >= 0, f"training.{key}", value, "a finite number of 0 or more")
        at_once = self.clients_at_once
        ok = at_once == "auto" or (isinstance(at_once, int) and at_once >= 1)
        check(ok, "training.clients_at_once", at_once, "auto or 1 or more")


@dataclass
class FabricConfig:
    """Devices and precision, as Lightning Fabric takes them."""

    accelerator: str = "auto"
    """auto, cpu or cuda."""
    devices: int = 1
    """Processes on this machine, each with a device of its own (on a CPU a share of the cores)."""
    num_nodes: int = 1
    """Machines, each started by torchrun."""
    parallelism: Literal["clients", "data"] = "clients"
    """What several processes share: clients trains whole cohorts on each, data every micro-batch."""
    strategy: str = "auto"
    """How several processes are joined, as in Fabric; fsdp cuts the base model up under parallelism: data."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto is bf16 on a GPU that has it, fp16 with loss scaling on an older one, fp32 on a CPU."""
    memory_limit_mb: int | None = None
    """MiB that each process may take, of its GPU or resident on a CPU; a cohort that wants more is cut in halves."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "fabric.")
        one_of("fabric.accelerator", self.accelerator, ("auto", "cpu", "cuda", "gpu", "mps"))
        one_of("fabric.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        one_of("fabric.parallelism", self.parallelism, ("clients", "data"))
        at_least("fabric.devices", self.devices, 1)
        at_least("fabric.num_nodes", self.num_nodes, 1)
        if self.memory_limit_mb is not None:
            at_least("fabric.memory_limit_mb", self.memory_limit_mb, 1)
        if self.strategy == "fsdp" and (self.parallelism != "data" or self.devices * self.num_nodes == 1):
            raise InputError(
                f"fabric.strategy: got fsdp with parallelism {self.parallelism} and {self.devices} devices, wanted "
                "parallelism: data and devices of 2 or more; fsdp cuts one model up over several processes"
            )

    def alone(self) -> FabricConfig:
        """The same for one process, on the same kind of device: for what several would only do twice."""
        return replace(self, devices=1, num_nodes=1, parallelism="clients", strategy="auto")
