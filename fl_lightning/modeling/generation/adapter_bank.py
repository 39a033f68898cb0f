"""Many adapters on one base model: each row of a batch uses one of them.

The base is computed once for all rows; a row with adapter k gets ``h = W0 x + s_k B_k A_k x``. The factors of the
adapters in a batch are concatenated, ``A`` of shape (R, in_features) and ``B`` of shape (out_features, R) with R the
sum of their ranks, so a layer costs two more matrix products however many adapters there are. Each row keeps the inner
values of its own adapter; a mask sets the others to 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import linear

from fl_lightning.modeling.lora import ADAPTER, lora_layers


@dataclass(frozen=True, eq=False)
class BankedAdapter:
    """An adapter on the model's device; without factors, the base model.

    Attributes:
        factors: {layer: (s A of shape (r, in_features), B of shape (out_features, r))}, fp32, on the model's device.
        fingerprint: digest of its tensors, which tells versions apart.
    """

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    fingerprint: str = ""


class AdapterBank:
    """Puts several adapters on the LoRA layers of a PEFT model at once, for inference.

    Usage: `prepare` adapters, then inside `attached()` call `set_rows` before each forward pass whose rows differ from
    those of the pass before.

    Args:
        model: from `create_lora_model`; its built-in adapter is off while the bank is attached.

    Example:
        >>> import torch
        >>> from fl_lightning import ModelConfig, collect_lora_state, create_lora_model, load_base_model
        >>> model = create_lora_model(load_base_model(ModelConfig(), dtype=torch.float32)[0])
        >>> bank = AdapterBank(model)
        >>> hr, base = bank.prepare(collect_lora_state(model)), BankedAdapter({})
        >>> with bank.attached(), torch.inference_mode():
        ...     bank.set_rows([hr, base])
        ...     model(torch.ones(2, 3, dtype=torch.long)).logits.shape
        torch.Size([2, 3, 4096])
    """

    def __init__(self, model: PeftModel) -> None:
        self._layers: dict[str, Any] = dict(lora_layers(model))
        self._device = next(model.parameters()).device
        self._adapters: tuple[BankedAdapter, ...] = ()
        self._rows: tuple[BankedAdapter, ...] = ()
        self._stacked: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._mask: torch.Tensor | None = None

    def prepare(
        self, state: Mapping[str, torch.Tensor], relative_scaling: float = 1.0, fingerprint: str = ""
    ) -> BankedAdapter:
        """Prepare an adapter.

        Args:
            state: its tensors, of any rank, as `read_lora_adapter` returns them.
            relative_scaling: its lora_alpha / r divided by the model's.
            fingerprint: see `BankedAdapter`.
        """
        factors = {}
        for name, layer in self._layers.items():
            a, b = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
            scale = float(layer.scaling[ADAPTER]) * relative_scaling
            b = b.to(self._device, torch.float32, copy=True)  # the caller keeps its state
            factors[name] = scale * a.to(self._device, torch.float32), b
        return BankedAdapter(factors, fingerprint)

    def set_rows(self, rows: Sequence[BankedAdapter]) -> None:
        """Set the adapters of the rows of the next forward passes; does nothing if they are the same as before.

        Args:
            rows: one adapter per row.
        """
        if tuple(rows) == self._rows:
            return
        self._rows = ()  # until all of the below is done, since memory may run out
        adapters = tuple(dict.fromkeys(adapter for adapter in rows if adapter.factors))
        if adapters != self._adapters:
            self._stacked = {
                name: (
                    torch.cat([adapter.factors[name][0] for adapter in adapters]),
                    torch.cat([adapter.factors[name][1] for adapter in adapters], dim=1),
                )
                for name in self._layers
                if adapters
            }
            self._adapters = adapters
        if not adapters:
            self._mask = None
        else:
            name = next(iter(self._layers))
            ranks = torch.tensor([adapter.factors[name][0].shape[0] for adapter in adapters])
            numbers = {adapter: number for number, adapter in enumerate(adapters)}
            owners = torch.arange(len(adapters)).repeat_interleave(ranks)  # of each of the R inner values
            row_adapters = torch.tensor([numbers.get(adapter, -1) for adapter in rows])  # -1: the base model
            mask = (row_adapters[:, None] == owners).to(torch.float32)
            self._mask = None if bool(mask.all()) else mask[:, None].to(self._device)
        self._rows = tuple(rows)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Within this block the model's LoRA layers use the arranged adapters instead of their built-in one."""
        handles = []
        try:
            for name, layer in self._layers.items():
                layer.enable_adapters(False)
                handles.append(layer.register_forward_hook(self._hook(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for layer in self._layers.values():
                layer.enable_adapters(True)
            self._adapters, self._rows, self._stacked, self._mask = (), (), {}, None

    def _hook(self, name: str) -> Any:
        def add_update(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if name not in self._stacked:
                return output
            a, b = self._stacked[name]
            inner = linear(inputs[0].to(a.dtype), a)
            if self._mask is not None:  # some models flatten rows and tokens, or have more dimensions
                inner = (inner.reshape(len(self._mask), -1, inner.shape[-1]) * self._mask).view(inner.shape)
            return output + linear(inner, b).to(output.dtype)

        return add_update
