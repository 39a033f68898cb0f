"""``merge --run RUN``: base and adapter as one model, for whatever takes no adapters."""

from __future__ import annotations

from pathlib import Path

from fl_lightning.commands.parser import Parser
from fl_lightning.config.parsing import parse_config
from fl_lightning.console import format_bytes, setup_logging, silence_libraries
from fl_lightning.signals import Stopped
from fl_lightning.storage.model_names import chosen_adapters, folder_names
from fl_lightning.storage.run_folder import find_run_folder, locked
from fl_lightning.storage.run_layout import CONFIG

DESCRIPTION = """Write base + adapter of each department and group of a run as one model that plain transformers loads:
safetensors, config, tokenizer and chat template. Nothing goes over the network but what the base needs."""


def run(argv: list[str]) -> int:
    """Merge."""
    parser = Parser("merge", DESCRIPTION)
    parser.takes_run()
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME",
        help="departments, groups, hr/client_0, hr/client_0+adapter (departments, groups)",
    )
    parser.add_argument("--to", metavar="DIR", help="where the models' folders go (RUN/merged)")
    help_ = "of the weights; auto is as the base's own files have them"
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help=help_)
    args = parser.read(argv)
    folder = find_run_folder(args.run, Path(args.output))
    config = parse_config(["--config", str(folder / CONFIG)])
    adapters = chosen_adapters(folder, args.models)
    names = folder_names(adapters)
    setup_logging()
    from fl_lightning.modeling.merging import merge_adapter

    silence_libraries()
    root = Path(args.to) if args.to else folder / "merged"
    written: list[str] = []
    try:
        with locked(folder):
            for name, adapter in adapters.items():
                left = len(adapters) - len(written)
                target = root / names[name]
                merged = merge_adapter(config.model, adapter, target, data=config.data, dtype=args.dtype, copies=left)
                rounded = f"; rounding is {merged.rounding:.1%} of the adapter's change" if merged.rounding else ""
                print(f"{name}: {merged.folder} ({merged.dtype}, {format_bytes(merged.size)}{rounded})", flush=True)
                written.append(name)
    except Stopped as stop:
        stop.note = f"written: {', '.join(written)}" if written else ""
        raise
    return 0
