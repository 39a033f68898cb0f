"""Versions, what torch has, and the machine's rate of matrix products."""

from __future__ import annotations

import inspect
import platform
import time
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu_sections.bench import Bench
from fl_lightning import openmp

LIBRARIES = ("torch", "transformers", "peft", "lightning", "bitsandbytes", "accelerate", "triton")
SHAPES = [(8192, 8192, 8192), (16384, 2048, 5504), (16384, 2048, 2048), (4096, 2048, 5504), (1024, 2048, 5504)]


def info(bench: Bench) -> dict:
    result: dict = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            result[name] = None
    result["grouped_mm"] = hasattr(torch.nn.functional, "grouped_mm")
    try:
        from torch.nn.attention.varlen import varlen_attn

        result["varlen_attn"] = list(inspect.signature(varlen_attn).parameters)
    except ImportError as error:
        result["varlen_attn"] = str(error)
    result["cpu_threads"], result["thread_waits"] = torch.get_num_threads(), openmp.describe()
    if bench.is_gpu:
        card = torch.cuda.get_device_properties(0)
        result |= {"gpu": card.name, "memory_gb": round(card.total_memory / 1e9, 1), "cuda": torch.version.cuda}
        result["cudnn"] = torch.backends.cudnn.version()
    shapes = [(256, 64, 128)] if bench.small else SHAPES
    result["gemm_tflops"] = {"x".join(map(str, shape)): round(gemm_rate(bench, *shape) / 1e12, 3) for shape in shapes}
    return result


def gemm_rate(bench: Bench, rows: int, inner: int, columns: int, repeats: int = 20) -> float:
    """FLOP/s of a product of (rows, inner) and (inner, columns), in bf16 on a GPU and fp32 on a CPU; the best of 3."""
    dtype = torch.bfloat16 if bench.is_gpu else torch.float32
    x = torch.randn(rows, inner, device=bench.device, dtype=dtype)
    w = torch.randn(columns, inner, device=bench.device, dtype=dtype)
    best = 0.0
    for _ in range(4):  # the first one warms up
        bench.sync()
        started = time.perf_counter()
        for _ in range(repeats):
            x @ w.T
        bench.sync()
        best = max(best, repeats * 2 * rows * inner * columns / (time.perf_counter() - started))
    return best
