"""Choose device and precision for this machine."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric import Fabric

from fl_lightning.config import FabricConfig
from fl_lightning.errors import InputError

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(precision: str, device_type: str) -> str:
    """``fp32``, ``bf16`` or ``fp16``: `precision`, or the fastest safe choice if it is ``auto``.

    ``auto`` is bf16 on a GPU that has it natively, fp16 with loss scaling on other GPUs, and fp32 on a CPU: without
    AVX512-BF16 or AMX, bf16 products are 50 to 150 times slower there, and with them results would differ between
    machines.

    Raises:
        InputError: for fp16 on a CPU, where it has no loss scaling.
    """
    if precision == "auto":
        if device_type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "fp32"
    if precision == "fp16" and device_type != "cuda":
        raise InputError(f"fabric.precision: expected fp32 or bf16 on {device_type}, got fp16")
    return precision


def set_matmul_precision(device_type: str, precision: str) -> None:
    """On a GPU, let the fp32 products that are left in a computation of 16 bits run in TF32.

    A run in fp32 keeps torch's setting: it is what others are compared with.
    """
    if device_type == "cuda" and precision != "fp32":
        torch.set_float32_matmul_precision("high")


def make_fabric(config: FabricConfig, loggers: list[Any] | None = None) -> tuple[Fabric, torch.dtype]:
    """(Fabric, dtype of the base model's weights) for the ``fabric`` block.

    Raises:
        InputError: if this machine does not have the accelerator or the devices.
    """
    accelerator = {"cuda": "gpu"}.get(config.accelerator, config.accelerator)
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError(
            f"fabric.accelerator: expected auto or cpu (there is no CUDA device), got {config.accelerator}"
        )
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    device_type = {"gpu": "cuda"}.get(accelerator, accelerator)
    precision = choose_precision(config.precision, device_type)
    set_matmul_precision(device_type, precision)
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy="ddp"
            if config.strategy == "fsdp"
            else config.strategy,  # DDP joins the processes; FSDP's sharding is done elsewhere
            precision=PRECISIONS[precision],
            loggers=loggers or [],
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"fabric: {' '.join(str(error).split())[:300]}") from error
    return fabric, DTYPES[precision] if device_type == "cuda" else torch.float32


def launch_fabric(fabric: Fabric) -> None:
    """Join the other processes of the run, if any; Fabric divides the cores of a CPU between them.

    Raises:
        InputError: if the started processes do not match the ``fabric`` block.
    """
    try:
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"fabric: {' '.join(str(error).split())[:300]}") from error
