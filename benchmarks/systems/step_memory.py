"""Peak memory of a training step on a GPU, counted without one, beside what ``doctor`` predicts.

    python -m benchmarks.systems.step_memory [--tokens 4096 16384] [--layers 24]

The step runs on torch's ``meta`` device, whose tensors have shapes but no values: a model of Qwen1.5-1.8B's shape in
bf16, a cohort of clients, dropout, Flash Attention (a stand-in that keeps what the kernel keeps), the chunked head,
forward and backward. Every operation's results are counted while they live. What the count does not see: workspaces of
libraries and fragmentation, for which the prediction has a margin; it is left out of both.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import weakref
from collections.abc import Iterable, Iterator
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.common import write_json

META = torch.device("meta")
RECORD_TOKENS = 128


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and that still live.

    Args:
        weights: are not counted, nor are views of them.

    Attributes:
        now: their bytes.
        peak: the most that `now` has been.
    """

    def __init__(self, weights: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        for weight in weights:
            self._count(weight.untyped_storage())
        self.now = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known and self._known[key]() is not None:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size


class _Flash(torch.autograd.Function):
    """Keeps what Flash Attention keeps: its inputs, its output, and fp32 logarithms of each token and head."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:-1], device=q.device))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Within this block the model computes on ``meta`` as on a GPU that has all kernels."""
    from fl_lightning.modeling import attention, cohort, dropout, head_loss, low_rank_product

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        out: torch.Tensor = _Flash.apply(q, k, v)  # type: ignore[no-untyped-call]
        return out

    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (attention, "varlen_attn", flash),
            (attention, "VARLEN_ARGUMENTS", frozenset({"scale", "enable_gqa", "window_size"})),
            (attention, "can_use_varlen_attention", lambda *_: True),
            (low_rank_product, "_has_kernel", lambda device, dtype: True),
            (cohort, "compute_dtype", lambda device: torch.bfloat16),
            (torch, "is_autocast_enabled", lambda device_type: False),  # does not know the device
            (dropout, "_on_device", lambda words, device: torch.empty(words.shape, dtype=torch.int64, device=device)),
        ):
            stack.enter_context(patch.object(target, name, value))
        stack.enter_context(patch.dict(head_loss.CHUNK_LOGITS, {"meta": head_loss.CHUNK_LOGITS["cuda"]}))
        yield


def measure(tokens: int, layers: int, *, recompute: bool = False, clients: int = 16, rank: int = 8) -> dict[str, Any]:
    """{counted, predicted, ratio} of a step: GB of activations, head and adapters with their gradients.

    Args:
        tokens: of the row.
        layers: of the model; 24 is Qwen1.5-1.8B.
        recompute: ``training.gradient_checkpointing``.
        clients: that share the row.
        rank: of their adapters.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from fl_lightning import LoraClientModule, create_lora_model
    from fl_lightning.data.packing import pack
    from fl_lightning.data.tokenization import Example
    from fl_lightning.modeling.activation_checkpointing import recompute_layers
    from fl_lightning.modeling.cohort import LoraCohort
    from fl_lightning.modeling.dropout import dropout_stream
    from fl_lightning.modeling.head_loss import CHUNK_LOGITS
    from fl_lightning.modeling.lora import lora_layers
    from fl_lightning.training.memory_estimate import (
        KNOWN_BASES,
        RESPONSE_SHARE,
        BaseSizes,
        head_bytes,
        layer_sizes,
        token_bytes,
    )

    sizes = {**KNOWN_BASES["Qwen/Qwen1.5-1.8B"][1], "num_hidden_layers": layers}
    config = Qwen2Config(**sizes)
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with META:
            base = Qwen2ForCausalLM(config).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(default_dtype)
    model = create_lora_model(base, r=rank, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    module, cohort = LoraClientModule(model).eval(), LoraCohort(model)
    state = {}
    for name, layer in lora_layers(model.to(META)).items():
        state[f"{name}.lora_A.weight"] = torch.zeros(rank, layer.in_features)
        state[f"{name}.lora_B.weight"] = torch.zeros(layer.out_features, rank)
    supervised = torch.arange(RECORD_TOKENS) >= RECORD_TOKENS * (1 - RESPONSE_SHARE)
    record = Example(torch.zeros(RECORD_TOKENS, dtype=torch.long), supervised)
    count = tokens // RECORD_TOKENS // clients
    row = pack([[record] * count] * clients)
    with as_on_gpu(), LiveBytes([*model.parameters(), *model.buffers()]) as live:
        cohort.load([state] * clients, META)
        batch = row.to(META)
        with cohort.attached(), recompute_layers(base) if recompute else contextlib.nullcontext():
            cohort.set_segments(row.client_tokens, [dropout_stream(seed) for seed in range(clients)])
            module(batch).loss.sum().backward()
    adapter = sum(tensor.numel() for tensor in state.values())
    inputs = sum(tensor.shape[1] for name, tensor in state.items() if "lora_A" in name)
    estimated = BaseSizes(parameters=0, linear=0, adapter=adapter, inputs=inputs, **layer_sizes(config))
    targets = len(row.targets)
    head = head_bytes(min(targets * config.vocab_size, CHUNK_LOGITS["cuda"]), 2) + targets * config.hidden_size * 4
    # Of the 16 bytes of a trained number two moments are AdamW's, which takes no step here.
    predicted = row.num_tokens * token_bytes(estimated, 2, recompute) + head + 8 * clients * adapter
    return {
        "tokens": row.num_tokens,
        "layers": layers,
        "recompute": recompute,
        "counted_gb": live.peak / 1e9,
        "predicted_gb": predicted / 1e9,
        "ratio": predicted / live.peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    rows = [measure(t, args.layers, recompute=recompute) for recompute in (False, True) for t in args.tokens]
    for row in rows:
        kind = "layers recomputed" if row["recompute"] else "all kept"
        print(
            f"{row['tokens']:>6} tokens, {kind:<17} counted {row['counted_gb']:6.2f} GB, predicted "
            f"{row['predicted_gb']:6.2f} GB ({row['ratio']:.2f})"
        )
    if args.json:
        write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
