"""The ``training`` and ``fabric`` blocks: a client's fit, and the devices that it runs on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fl_lightning.config.checks import Block, NonNegativeFloat, PositiveFloat, PositiveInt, check


@dataclass
class TrainingConfig(Block, key="training"):
    """One client's fit in one round."""

    local_epochs: PositiveInt = 1
    """Passes over the client's records."""
    learning_rate: PositiveFloat = 2e-4
    """Learning rate of AdamW, constant."""
    batch_size: PositiveInt = 4
    """Records in a micro-batch."""
    accumulate_grad_batches: PositiveInt = 1
    """Micro-batches per optimizer step, whose targets all count the same; an incomplete last window is a step too."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Clip each client's gradient to this norm; 0 turns clipping off."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of AdamW, on the LoRA factors."""
    proximal_mu: NonNegativeFloat = 0.0
    """FedProx: adds proximal_mu / 2 times the squared distance from the start to each client's loss; 0 turns it off."""
    early_stopping: bool = False
    """Take each adapter from the round in which the selection records have their lowest loss, instead of from the last
    round: of every department and group, and each client's own with federation.share: none or personal.own: during."""
    clients_at_once: PositiveInt | Literal["auto"] = "auto"
    """Clients trained together in one forward pass, or auto."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs and recompute the rest in the backward pass: less memory, about a third more
    time."""
    cuda_graphs: bool = False
    """On a GPU, record forward and backward pass of rows of a size once and repeat them: for small rows, in which the
    GPU waits for the host. Rows are padded to a few sizes."""


@dataclass
class FabricConfig(Block, key="fabric"):
    """Devices and precision, as arguments of Lightning Fabric."""

    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto"
    """auto, cpu or cuda."""
    devices: PositiveInt = 1
    """Processes on this machine, each on its own device (on a CPU, on a share of the cores)."""
    num_nodes: PositiveInt = 1
    """Machines, each started by torchrun."""
    parallelism: Literal["clients", "data"] = "clients"
    """How several processes divide the work: clients gives each one whole cohorts, data a part of every micro-batch."""
    strategy: str = "auto"
    """Fabric's strategy for several processes; fsdp shards the base model and needs parallelism: data."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto is bf16 on a GPU that supports it, fp16 with loss scaling on an older one, and fp32 on a CPU."""
    memory_limit_mb: PositiveInt | None = None
    """Memory limit of each process in MiB, on its GPU or resident on a CPU; a cohort that needs more is halved."""

    def __post_init__(self) -> None:
        """Check the ranges, and that fsdp has several processes to shard over."""
        super().__post_init__()
        fits = self.strategy != "fsdp" or (self.parallelism == "data" and self.devices * self.num_nodes > 1)
        expected = "fsdp only with parallelism: data and devices of 2 or more (it shards one model over processes)"
        got = f"{self.strategy} with parallelism {self.parallelism} and {self.devices} devices"
        check(fits, "fabric.strategy", expected, got)

    def alone(self) -> FabricConfig:
        """The same for one process on the same kind of device, for work that several would only repeat."""
        return replace(self, devices=1, num_nodes=1, parallelism="clients", strategy="auto")
