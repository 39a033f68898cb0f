"""Device and precision: what ``auto`` means on the machine at hand."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric import Fabric

from fl_lightning.config import FabricConfig
from fl_lightning.errors import InputError

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(precision: str, device_type: str) -> str:
    """``fp32``, ``bf16`` or ``fp16``: `precision` itself, or the fastest safe choice where it is ``auto``.

    On a GPU bf16 where it is native, else fp16 with loss scaling. On a CPU fp32: without AVX512-BF16 or AMX a product
    in bf16 is 50 to 150 times slower, and with them a run would differ from one machine to the next.

    Raises:
        InputError: fp16 on a CPU, which has no loss scaling there.
    """
    if precision == "auto":
        if device_type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "fp32"
    if precision == "fp16" and device_type != "cuda":
        raise InputError(f"fabric.precision: got fp16 on {device_type}, wanted fp32 or bf16 there")
    return precision


def make_fabric(config: FabricConfig, loggers: list[Any] | None = None) -> tuple[Fabric, torch.dtype]:
    """(Fabric, dtype of the base model's weights) for the ``fabric`` block.

    Raises:
        InputError: if the accelerator is not on this machine.
    """
    accelerator = {"cuda": "gpu"}.get(config.accelerator, config.accelerator)
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError(
            f"fabric.accelerator: got {config.accelerator}, but no CUDA device is here; wanted auto or cpu"
        )
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    device_type = {"gpu": "cuda"}.get(accelerator, accelerator)
    precision = choose_precision(config.precision, device_type)
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy="ddp" if config.strategy == "fsdp" else config.strategy,  # joins the processes, wraps nothing
            precision=PRECISIONS[precision],
            loggers=loggers or [],
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"fabric: {' '.join(str(error).split())[:300]}") from error
    return fabric, DTYPES[precision] if device_type == "cuda" else torch.float32


def launch_fabric(fabric: Fabric) -> None:
    """Join the other processes of the run, if there are any; Fabric divides the cores of a CPU between them.

    Raises:
        InputError: if the processes that were started do not fit the ``fabric`` block.
    """
    try:
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"fabric: {' '.join(str(error).split())[:300]}") from error
