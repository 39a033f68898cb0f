"""What a run would meet on this machine: versions, device, precision, network, memory and disk."""

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
}
"""{extra: what it brings}."""
GIB = 2**30


@dataclass(frozen=True)
class Diagnosis:
    """All findings, as plain values; `problems` are sentences that say what to do."""

    versions: dict[str, str | None]
    """{distribution: version, or None where it is missing}."""
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
    """Look at this machine with the eyes of a config; nothing is loaded, downloaded or written."""
    problems: list[str] = []
    device = _device(config, problems)
    name = config.model.name_or_path
    model: dict[str, Any] = {"name_or_path": name, "load_in_4bit": config.model.load_in_4bit}
    needs: dict[str, Any] | None = None
    try:
        base = memory_estimate.sizes(config)
        model |= asdict(base)
        estimate = memory_estimate.estimate(
            config, base, device=device["type"], precision=device["precision"], clients=_clients(config, problems)
        )
        free = memory_estimate.free_memory(device["type"])
        needs = {**estimate.as_json(), "free": free, "fits": None if free is None else estimate.total <= free}
        if needs["fits"] is False:
            amounts = f"about {estimate.total / GIB:.1f} GiB are wanted and {(free or 0) / GIB:.1f} GiB are free"
            problems.append(f"memory: {amounts} on the {device['type']}; {_advice(config, estimate)}")
    except InputError as error:
        problems.append(str(error))
    place = Path(config.output)
    while not place.exists() and place != place.parent:
        place = place.parent
    disk: dict[str, Any] = {"output": config.output, "free": shutil.disk_usage(place).free}
    if disk["free"] < GIB:
        problems.append(
            f"disk: {disk['free'] / GIB:.1f} GiB are free at {place}, wanted 1 or more; choose another --output"
        )
    return Diagnosis(_versions(), device, os.environ.get("HF_HUB_OFFLINE") == "1", model, needs, disk, problems)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in (*LIBRARIES, *(name for names in EXTRAS.values() for name in names)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _device(config: RunConfig, problems: list[str]) -> dict[str, Any]:
    import torch

    gpu, wanted = torch.cuda.is_available(), config.fabric.accelerator
    if wanted in ("cuda", "gpu") and not gpu:
        problems.append(f"fabric.accelerator: got {wanted}, but no CUDA device is here; wanted auto or cpu")
    kind = "cuda" if gpu and wanted in ("auto", "cuda", "gpu") else "cpu"
    try:
        precision = choose_precision(config.fabric.precision, kind)
    except InputError as error:
        problems.append(str(error))
        precision = "fp32"
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    count = torch.cuda.device_count() if kind == "cuda" else torch.get_num_threads()
    if kind == "cuda" and config.fabric.devices > count:
        problems.append(f"fabric.devices: got {config.fabric.devices}, but {count} CUDA devices are here; wanted fewer")
    return {"type": kind, "name": name, "count": count, "precision": precision, "asked": config.fabric.precision}


def _clients(config: RunConfig, problems: list[str]) -> int:
    """How many clients a run has; as many as its config says for one department where the data are not to be found."""
    try:
        return sum(map(len, find_clients(config.data.root, config.data.clients_per_dept).values()))
    except InputError as error:
        problems.append(str(error))
        return config.data.clients_per_dept


def _advice(config: RunConfig, estimate: memory_estimate.Estimate) -> str:
    if estimate.base > estimate.total // 2 and not config.model.load_in_4bit:
        return "set model.load_in_4bit: true, or choose a smaller base"
    if estimate.clients_at_once > 1:
        return "set training.clients_at_once: 1"
    return "lower training.batch_size (and raise accumulate_grad_batches), or data.max_length"


def show(found: Diagnosis, console: Console) -> None:
    """Print tables, then what to do."""
    rows = Table(box=box.SIMPLE_HEAD, show_header=False)
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    extra = {name: key for key, names in EXTRAS.items() for name in names}
    for name, number in found.versions.items():
        how = f"; pip install 'fl_lightning[{extra[name]}]'" if name in extra else ""
        rows.add_row(name, number or escape(f"missing{how}"))
    device = found.device
    unit = "devices" if device["type"] == "cuda" else "threads"
    rows.add_row("device", f"{device['type']}: {device['name']}, {device['count']} {unit}")
    rows.add_row("precision", f"{device['precision']} (asked for: {device['asked']})")
    rows.add_row("network", "off (HF_HUB_OFFLINE=1)" if found.offline else "used for models on the Hub")
    rows.add_row("disk", f"{found.disk['free'] / GIB:.1f} GiB free for {found.disk['output']}")
    console.print(rows)
    if found.memory is not None:
        console.print(_memory(found))
    for problem in found.problems:
        console.print(f"[bold red]![/] {escape(problem)}", highlight=False, soft_wrap=True)
    if not found.problems:
        console.print("Nothing stands in the way.")


def _memory(found: Diagnosis) -> Table:
    needs = found.memory or {}
    title = f"{found.model['name_or_path']}, {found.model['parameters'] / 1e6:,.1f}M parameters"
    rows = Table(
        title=title + (", 4-bit" if found.model["load_in_4bit"] else ""), title_justify="left", box=box.SIMPLE_HEAD
    )
    rows.add_column("memory, at most")
    rows.add_column("GiB", justify="right")
    rows.add_column("", overflow="fold")
    why = {
        "base": "frozen weights",
        "adapters": f"{needs['clients_at_once']} at once: factors, gradients, AdamW",
        "activations": f"{needs['step_tokens']:,} tokens in a step",
        "head": f"logits of {memory_estimate.ANSWERED:.0%} of them",
        "margin": "libraries and allocator",
    }
    for name, what in why.items():
        rows.add_row(name, f"{needs[name] / GIB:.2f}", what)
    rows.add_section()
    verdict = {True: "[green]fits[/]", False: "[bold red]does not fit[/]", None: "unknown"}[needs["fits"]]
    rows.add_row("total", f"{needs['total'] / GIB:.2f}", verdict)
    free = needs["free"]
    rows.add_row(f"free on the {found.device['type']}", "–" if free is None else f"{free / GIB:.2f}", "")
    return rows
