"""One token for 32 rows of several adapters: the bank's two products a layer against PEFT's sub-batch an adapter.

    python -m benchmarks.systems.mixed_adapters [--rows 32] [--adapters 1 5 20] [--steps 30]

PEFT's own way to mix adapters in a batch is ``model(..., adapter_names=[...])``. Both are given the same rows of one
token over a cache of 64; the logits are compared first.
"""

from __future__ import annotations

import argparse
import copy
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import DynamicCache

from benchmarks.common import alternate, report
from fl_lightning import ModelConfig, create_lora_model, load_base_model
from fl_lightning.modeling.generation.adapter_bank import AdapterBank
from fl_lightning.modeling.lora import ADAPTER, collect_lora_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("lightning_logs/benchmarks/mixed_adapters.json"))
    args = parser.parse_args()
    model = create_lora_model(load_base_model(ModelConfig(), dtype=torch.float32)[0]).eval()
    like, draw = collect_lora_state(model), torch.Generator().manual_seed(0)
    states = [
        {n: torch.randn(t.shape, generator=draw) * 0.1 for n, t in like.items()} for _ in range(max(args.adapters))
    ]
    bank = AdapterBank(model)
    taken = [bank.prepare(state) for state in states]
    for number, state in enumerate(states):
        model.add_adapter(f"a{number}", model.peft_config[ADAPTER])
        for name, module in model.named_modules():
            if f"{name}.lora_A.weight" in state:
                module.lora_A[f"a{number}"].weight.data.copy_(state[f"{name}.lora_A.weight"])
                module.lora_B[f"a{number}"].weight.data.copy_(state[f"{name}.lora_B.weight"])
    model.eval()  # an adapter that is added drops out otherwise
    ids = torch.randint(3, 4000, (args.rows, 64), generator=draw)
    with torch.inference_mode():
        for count in args.adapters:
            which = [row % count for row in range(args.rows)]
            names = [f"a{i}" for i in which]
            filled = DynamicCache()
            model(input_ids=ids, past_key_values=filled, adapter_names=names)

            def peft(filled: DynamicCache = filled, names: list[str] = names) -> torch.Tensor:
                for _ in range(args.steps):
                    logits = model(
                        input_ids=ids[:, :1], past_key_values=copy.deepcopy(filled), adapter_names=names
                    ).logits
                return logits

            def banked(filled: DynamicCache = filled, which: list[int] = which) -> torch.Tensor:
                with bank.attached():
                    for _ in range(args.steps):
                        bank.set_rows([taken[i] for i in which])
                        logits = model.get_base_model()(
                            input_ids=ids[:, :1], past_key_values=copy.deepcopy(filled)
                        ).logits
                return logits

            torch.testing.assert_close(peft(), banked(), atol=1e-3, rtol=0)
            seconds = alternate({"PEFT adapter_names": peft, "AdapterBank": banked}, args.repeats)
            report(
                f"{args.rows} rows, {count} adapters, {args.steps} tokens a row",
                seconds,
                "PEFT adapter_names",
                {},
                str(args.json.with_stem(f"{args.json.stem}_{count}")),
            )


if __name__ == "__main__":
    main()
