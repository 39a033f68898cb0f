"""Many adapters on one base model: each row of a batch goes through its own.

The base is computed once for all rows; row b of adapter k gets ``h = W0 x + s_k B_k A_k x``. The factors of the
adapters in a batch stand beside each other, ``A`` of shape (R, in_features) and ``B`` of shape (out_features, R) with R
the sum of their ranks, so that a layer costs two more matrix products however many adapters there are; what is not a
row's own of the R inner values is multiplied by 0.
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
    """An adapter that is ready for use; the base model where it has no factors.

    Attributes:
        factors: {layer: (s A of shape (r, in_features), B of shape (out_features, r))}, fp32, on the model's device.
        fingerprint: of what it holds, for whoever wants to know which version answered.
    """

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    fingerprint: str = ""


class AdapterBank:
    """Puts several adapters on the LoRA layers of a PEFT model at once, for inference.

    Usage: `take` adapters, then inside `attached()` call `arrange` before a forward pass whose rows have others than
    the one before.

    Args:
        model: as `create_lora_model` gives it; its own adapter is switched off while the bank is attached.

    Example:
        >>> import torch
        >>> from fl_lightning import ModelConfig, collect_lora_state, create_lora_model, load_base_model
        >>> model = create_lora_model(load_base_model(ModelConfig(), dtype=torch.float32)[0])
        >>> bank = AdapterBank(model)
        >>> hr, base = bank.take(collect_lora_state(model)), BankedAdapter({})
        >>> with bank.attached(), torch.inference_mode():
        ...     bank.arrange([hr, base])
        ...     model(torch.ones(2, 3, dtype=torch.long)).logits.shape
        torch.Size([2, 3, 4096])
    """

    def __init__(self, model: PeftModel) -> None:
        self._layers: dict[str, Any] = dict(lora_layers(model))
        self._device = next(model.parameters()).device
        self._beside: tuple[BankedAdapter, ...] = ()
        self._stacked: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._own: torch.Tensor | None = None

    def take(self, state: Mapping[str, torch.Tensor], gain: float = 1.0, fingerprint: str = "") -> BankedAdapter:
        """An adapter made ready.

        Args:
            state: its tensors, of any rank, as `read_lora_adapter` gives them.
            gain: its scale lora_alpha / r over that of the model.
            fingerprint: see `BankedAdapter`.
        """
        factors = {}
        for name, layer in self._layers.items():
            a, b = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
            scale = float(layer.scaling[ADAPTER]) * gain
            b = b.to(self._device, torch.float32, copy=True)  # the state stays the caller's
            factors[name] = scale * a.to(self._device, torch.float32), b
        return BankedAdapter(factors, fingerprint)

    def arrange(self, rows: Sequence[BankedAdapter]) -> None:
        """Say whose the rows of the next forward passes are.

        Args:
            rows: one adapter a row.
        """
        beside = tuple(dict.fromkeys(adapter for adapter in rows if adapter.factors))
        if beside != self._beside:
            self._stacked = {
                name: (
                    torch.cat([adapter.factors[name][0] for adapter in beside]),
                    torch.cat([adapter.factors[name][1] for adapter in beside], dim=1),
                )
                for name in self._layers
                if beside
            }
            self._beside = beside  # last: if there is no memory for the above, it must not count as done
        if not beside:
            self._own = None
            return
        name = next(iter(self._layers))
        owners = [adapter for adapter in beside for _ in range(adapter.factors[name][0].shape[0])]
        own = torch.tensor([[row is owner for owner in owners] for row in rows], dtype=torch.float32)
        self._own = None if bool(own.all()) else own[:, None].to(self._device)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """While this block runs, the model's LoRA layers use the adapters that are arranged instead of their own."""
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
            self._beside, self._stacked, self._own = (), {}, None

    def _hook(self, name: str) -> Any:
        def add_update(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if name not in self._stacked:
                return output
            a, b = self._stacked[name]
            inner = linear(inputs[0].to(a.dtype), a)
            if self._own is not None:
                inner = inner * self._own
            return output + linear(inner, b).to(output.dtype)

        return add_update
