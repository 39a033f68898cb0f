"""Clients together against one at a time, a fit twice, and a run that is resumed."""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_sections.bench import Bench, relative_difference


def correctness(bench: Bench) -> dict:
    """Distances are shares of how far the adapters have moved; wanted in fp32: at most 1e-4, and True for the bytes."""
    kinds: dict[str, dict[str, Any]] = {"fp32": {"precision": "fp32"}, "bf16": {"precision": "bf16"}}
    if bench.is_gpu:
        kinds["fp16"] = {"precision": "fp16"}
        kinds["bf16, CUDA graphs"] = {"precision": "bf16", "cuda_graphs": True}
    kinds["4-bit"] = {"in_4bit": True}
    kinds["4-bit, layers recomputed"] = {"in_4bit": True, "gradient_checkpointing": True}
    return {name: bench.attempt(lambda options=options: compare(bench, options)) for name, options in kinds.items()}


def compare(bench: Bench, options: dict[str, Any]) -> dict:
    bench.release()
    if options.get("precision") == "fp32":
        torch.set_float32_matmul_precision("highest")
    graphs = options.pop("cuda_graphs", False)
    loaded = bench.load(clients=2, records=8, **options)
    data = dict(loaded.data)
    alone = bench.fit(loaded, data, 4, 1)
    loaded.local.training = replace(loaded.local.training, cuda_graphs=graphs)
    together = bench.fit(loaded, data, 4, "auto")
    seconds, peak = loaded.seconds, bench.peak_gb()
    again = bench.fit(loaded, data, 4, "auto")
    pairs = [(x.state[n], y.state[n]) for x, y in zip(together, again, strict=True) for n in x.state]
    return {
        "clients": len(data),
        "difference": relative_difference(alone, together, loaded.start),
        "same_bytes_twice": all(torch.equal(x, y) for x, y in pairs),
        "mean_last_loss_one_at_a_time": statistics.fmean(u.losses[-1] for u in alone),
        "mean_last_loss_together": statistics.fmean(u.losses[-1] for u in together),
        "seconds": round(seconds, 2),
        "peak_gb": peak,
    }


def resume(bench: Bench) -> dict:
    """Two rounds at a stretch against a run that ends after one and is resumed."""
    device = "cuda" if bench.is_gpu else "cpu"
    options = ["--max-records", "8", "--clients-per-dept", "1", "--device-map", device, "--logging.samples", "0"]
    whole, parts = bench.folder / "whole", bench.folder / "parts"
    fit(*options, "--rounds", "2", "--output", str(whole))
    fit(*options, "--rounds", "1", "--output", str(parts))
    fit("--resume", str(run_of(parts)), "--rounds", "2")
    digests = [adapters(run_of(folder)) for folder in (whole, parts)]
    return {"same_bytes": digests[0] == digests[1], "adapters": len(digests[0])}


def fit(*arguments: str) -> None:
    command = [sys.executable, "-m", "fl_lightning", "fit", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[2:])}: {(done.stdout + done.stderr)[-300:]}")


def run_of(folder: Path) -> Path:
    return max(folder.glob("version_*"), key=lambda path: path.stat().st_mtime)


def adapters(run: Path) -> dict[str, str]:
    files = sorted((run / "adapters").rglob("*.safetensors"))
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
