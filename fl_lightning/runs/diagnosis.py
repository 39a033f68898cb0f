"""Compare a config with this machine: versions, device, precision, network, memory and disk."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_lightning import openmp
from fl_lightning.config import RunConfig
from fl_lightning.data.layout import find_clients
from fl_lightning.errors import InputError
from fl_lightning.training import memory_estimate
from fl_lightning.training.device import choose_precision

LIBRARIES = ("fl-lightning", "torch", "lightning", "transformers", "peft", "bitsandbytes", "torchmetrics")
EXTRAS = {
    "data": ("datasets", "flwr-datasets"),
    "plots": ("matplotlib",),
    "privacy": ("dp-accounting",),
    "secure": ("cryptography", "pycryptodome"),
}
"""{extra of this package: libraries that it installs}."""
GIB = 2**30


@dataclass(frozen=True)
class Diagnosis:
    """All findings, as plain values.

    Attributes:
        versions: {distribution: version}; None if it is not installed.
        device: its type, name, count and precision, and how CPU threads wait for each other.
        offline: whether the Hub is switched off.
        model: name and sizes of the base model.
        memory: bytes by use, and those that are free; None if the base model is unknown.
        disk: the output folder and its free bytes.
        problems: sentences that say what is wrong and what to do.
    """

    versions: dict[str, str | None]
    device: dict[str, Any]
    offline: bool
    model: dict[str, Any]
    memory: dict[str, Any] | None
    disk: dict[str, Any]
    problems: list[str]

    def as_json(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)


def diagnose(config: RunConfig) -> Diagnosis:
    """Compare a config with this machine; nothing is loaded, downloaded or written."""
    problems: list[str] = []
    device = _device(config, problems)
    name = config.model.name_or_path
    model: dict[str, Any] = {"name_or_path": name, "load_in_4bit": config.model.load_in_4bit}
    memory: dict[str, Any] | None = None
    try:
        base = memory_estimate.base_sizes(config)
        model |= asdict(base)
        estimate = memory_estimate.estimate_memory(
            config,
            base,
            device=device["type"],
            precision=device["precision"],
            num_clients=_num_clients(config, problems),
            card_bytes=memory_estimate.card_memory(device["type"]),
        )
        free = memory_estimate.free_memory(device["type"])
        memory = {**estimate.as_json(), "free": free, "fits": None if free is None else estimate.total <= free}
        if memory["fits"] is False:
            sizes = f"about {estimate.total / GIB:.1f} GiB are needed and {(free or 0) / GIB:.1f} GiB are free"
            problems.append(f"memory: {sizes} on the {device['type']}; {_advice(config, estimate)}")
    except InputError as error:
        problems.append(str(error))
    folder = Path(config.output)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    disk: dict[str, Any] = {"output": config.output, "free": shutil.disk_usage(folder).free}
    if disk["free"] < GIB:
        problems.append(
            f"disk: expected 1 GiB free or more at {folder}, got {disk['free'] / GIB:.1f} GiB; choose another --output"
        )
    return Diagnosis(_versions(), device, os.environ.get("HF_HUB_OFFLINE") == "1", model, memory, disk, problems)


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in (*LIBRARIES, *(name for names in EXTRAS.values() for name in names)):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _device(config: RunConfig, problems: list[str]) -> dict[str, Any]:
    import torch

    has_gpu, accelerator = torch.cuda.is_available(), config.fabric.accelerator
    if accelerator in ("cuda", "gpu") and not has_gpu:
        problems.append(
            f"fabric.accelerator: expected auto or cpu, since this machine has no CUDA device, got {accelerator}"
        )
    kind = "cuda" if has_gpu and accelerator in ("auto", "cuda", "gpu") else "cpu"
    try:
        precision = choose_precision(config.fabric.precision, kind)
    except InputError as error:
        problems.append(str(error))
        precision = "fp32"
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    count = torch.cuda.device_count() if kind == "cuda" else torch.get_num_threads()
    if kind == "cuda" and config.fabric.devices > count:
        problems.append(
            f"fabric.devices: expected at most {count}, the CUDA devices of this machine, got {config.fabric.devices}"
        )
    return {
        "type": kind,
        "name": name,
        "count": count,
        "precision": precision,
        "asked": config.fabric.precision,
        "thread_waits": openmp.describe(),
    }


def _num_clients(config: RunConfig, problems: list[str]) -> int:
    """Number of clients of a run; that of one department, as in the config, if the data cannot be found."""
    try:
        data = config.data
        clients = find_clients(data.root, data.max_clients, columns=data.columns, exclude=data.exclude)
        return sum(map(len, clients.values()))
    except InputError as error:
        problems.append(str(error))
        return config.data.max_clients or 1


def _advice(config: RunConfig, estimate: memory_estimate.MemoryEstimate) -> str:
    if estimate.base > estimate.total // 2 and not config.model.load_in_4bit:
        return "set model.load_in_4bit: true, or choose a smaller base"
    if estimate.clients_at_once > 1:
        return "set training.clients_at_once: 1"
    return "lower training.batch_size (and raise accumulate_grad_batches), or data.max_length"


def show(result: Diagnosis, console: Console) -> None:
    """Print tables, then the problems."""
    rows = Table(box=box.SIMPLE_HEAD, show_header=False)
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    extra = {name: key for key, names in EXTRAS.items() for name in names}
    for name, number in result.versions.items():
        how = f"; pip install 'fl_lightning[{extra[name]}]'" if name in extra else ""
        rows.add_row(name, number or escape(f"missing{how}"))
    device = result.device
    unit = "devices" if device["type"] == "cuda" else "threads"
    rows.add_row("device", f"{device['type']}: {device['name']}, {device['count']} {unit}")
    rows.add_row("precision", f"{device['precision']} (asked for: {device['asked']})")
    rows.add_row("CPU threads", escape(device["thread_waits"]))
    rows.add_row("network", "off (HF_HUB_OFFLINE=1)" if result.offline else "used for models on the Hub")
    rows.add_row("disk", f"{result.disk['free'] / GIB:.1f} GiB free for {result.disk['output']}")
    console.print(rows)
    if result.memory is not None:
        console.print(_memory_table(result))
    for problem in result.problems:
        console.print(f"[bold red]![/] {escape(problem)}", highlight=False, soft_wrap=True)
    if not result.problems:
        console.print("No problems found.")


def _memory_table(result: Diagnosis) -> Table:
    needs = result.memory or {}
    title = f"{result.model['name_or_path']}, {result.model['parameters'] / 1e6:,.1f}M parameters"
    rows = Table(
        title=title + (", 4-bit" if result.model["load_in_4bit"] else ""), title_justify="left", box=box.SIMPLE_HEAD
    )
    rows.add_column("memory, at most")
    rows.add_column("GiB", justify="right")
    rows.add_column("", overflow="fold")
    uses = {
        "base": "frozen weights",
        "adapters": f"{needs['clients_at_once']} at once: factors, gradients, AdamW",
        "activations": f"{needs['step_tokens']:,} tokens per step",
        "head": f"logits of {memory_estimate.RESPONSE_SHARE:.0%} of them, in chunks",
        "margin": "libraries and allocator",
    }
    for name, use in uses.items():
        rows.add_row(name, f"{needs[name] / GIB:.2f}", use)
    rows.add_section()
    verdict = {True: "[green]fits[/]", False: "[bold red]does not fit[/]", None: "unknown"}[needs["fits"]]
    rows.add_row("total", f"{needs['total'] / GIB:.2f}", verdict)
    free = needs["free"]
    rows.add_row(f"free on the {result.device['type']}", "–" if free is None else f"{free / GIB:.2f}", "")
    return rows
