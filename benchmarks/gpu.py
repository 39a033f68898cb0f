"""Figures of this package on one GPU beside what users would take instead, made for five minutes without a network.

    python -m benchmarks.gpu [--sections info profile training …] [--seconds 300] [--folder lightning_logs/gpu]
        [--cpu] [--small]

===========  ==========================================================================================================
section      measures
===========  ==========================================================================================================
info         versions, what torch has, rates of matrix products of Qwen1.5-1.8B's shapes
profile      a step of one client, of all clients and of a bare PEFT loop: launches, waits, busy time, its kernels
training     tokens/s, share of the rate of matrix products, ms a step, peak memory and the predicted one: ours with one
             client and `auto`, with CUDA graphs and without, a bare padded PEFT loop, one Trainer per client
correctness  clients together against one at a time: fp32, bf16, fp16, 4-bit; a fit twice, byte for byte
serving      `generate`, and the server's decoder with five adapters, at 1, 32 and 128 rows
default      a round's fits and evaluation of configs/default.yaml on the GPU beside the CPU
resume       a run of two rounds against one that is resumed after the first, byte for byte
rows         larger and larger rows: the smallest one that keeps the card busy
compiled     the bare loop with compiled layers
===========  ==========================================================================================================

The model has Qwen1.5-1.8B's shape and random weights. Each section writes its figures, or why it failed, to
``gpu.json`` as soon as it ends; one that would begin after ``--seconds`` is left out. ``--small`` is a model of two
layers and few records, ``--cpu`` runs without a GPU: together a trial of the script in less than two minutes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.common import write_json
from benchmarks.gpu_sections.bench import Bench
from benchmarks.gpu_sections.correctness import correctness, resume
from benchmarks.gpu_sections.machine import info
from benchmarks.gpu_sections.profile import profile
from benchmarks.gpu_sections.serving import serving
from benchmarks.gpu_sections.training import compiled, default, rows, training

SECTIONS: dict[str, Callable[[Bench], dict]] = {
    f.__name__: f for f in (info, profile, training, correctness, serving, default, resume, rows, compiled)
}


def main(argv: Sequence[str] | None = None) -> dict:
    """Run the sections and return what is in ``gpu.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--folder", type=Path, default=Path("lightning_logs/gpu"))
    parser.add_argument("--model-folder", type=Path, help="where the model is kept between runs")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    name = f"fl_lightning_qwen_shape{'_small' if args.small else ''}"
    bench = Bench(
        device="cpu" if args.cpu else "cuda",
        small=args.small,
        folder=args.folder,
        model_folder=args.model_folder or Path(tempfile.gettempdir()) / name,
        deadline=time.monotonic() + args.seconds,
    )
    results: dict[str, dict] = {}
    for section in args.sections:
        started = time.monotonic()
        if bench.seconds_left() <= 0:
            results[section] = {"left out": f"{args.seconds:.0f} seconds were over"}
        else:
            bench.say(f"== {section}")
            results[section] = bench.attempt(lambda section=section: SECTIONS[section](bench), quiet=True)
            results[section]["section_seconds"] = round(time.monotonic() - started, 1)
        bench.release()
        write_json(str(args.folder / "gpu.json"), results)
    bench.say(f"done; figures in {args.folder / 'gpu.json'}")
    return results


if __name__ == "__main__":
    main()
