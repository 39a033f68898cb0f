"""A profile of a few steps: what is launched, what waits, and which kernels take the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.gpu_sections.bench import Bench
from benchmarks.gpu_sections.contestants import BareLoop
from fl_lightning.modeling.attention import restore_attention

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx", "cudaGraphLaunch")
WAITS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "cudaMemcpyAsync")
TOP = 15


def profile(bench: Bench) -> dict:
    loaded = bench.load(clients=4, records=8)
    everything, result = dict(loaded.data), {}
    for who, at_once, clients in (("ours, auto", "auto", None), ("ours, one at a time", 1, 1)):
        loaded.local.data = everything
        data = loaded.cut(8, clients)

        def ours(data: Any = data, at_once: Any = at_once) -> int:
            bench.fit(loaded, data, 4, at_once)
            return len(loaded.steps)

        result[who] = bench.attempt(lambda who=who, ours=ours: measure(bench, who, ours))
    loaded.local.data = everything
    data = loaded.cut(8, 1)
    restore_attention(loaded.module.model.get_base_model())
    loop = BareLoop(bench, loaded)

    def bare() -> int:
        loop.run(data, 4)
        return loop.steps

    result["bare loop"] = bench.attempt(lambda: measure(bench, "bare loop", bare))
    return result


def measure(bench: Bench, name: str, run: Callable[[], int]) -> dict:
    """Figures of a run, which returns its number of steps; whole tables go to files."""
    run()
    seconds, steps = bench.timed(run)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_gpu else [])]
    with torch_profile(activities=activities) as profiler:
        run()
        bench.sync()
    events = profiler.key_averages()
    key = "self_device_time_total" if bench.is_gpu else "self_cpu_time_total"
    on_device = [e for e in events if not bench.is_gpu or str(e.device_type).endswith("CUDA")]
    file = bench.folder / f"profile_{''.join(c if c.isalnum() else '_' for c in name)}.txt"
    tables = (events.table(sort_by=by, row_limit=30, max_name_column_width=70) for by in (key, "self_cpu_time_total"))
    file.write_text("\n".join(tables))
    waits = {e.key: e.count for e in events if e.key in WAITS or "ynchronize" in e.key}
    return {
        "steps": steps,
        "ms_per_step": round(1000 * seconds / steps, 1),
        "busy_ms_per_step": round(sum(getattr(e, key) for e in on_device) / 1000 / steps, 1),
        "launches_per_step": round(sum(e.count for e in events if e.key in LAUNCHES) / steps),
        "torch_calls_per_step": round(sum(e.count for e in events if e.key.startswith("aten::")) / steps),
        "waits_per_step": {name: round(count / steps, 1) for name, count in waits.items()},
        "top": [
            {"ms": round(getattr(e, key) / 1000 / steps, 2), "calls": round(e.count / steps, 1), "name": e.key[:100]}
            for e in sorted(on_device, key=lambda e: -getattr(e, key))[:TOP]
        ],
    }
