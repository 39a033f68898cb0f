"""K clients' adapters on one base model: stacked LoRA factors that train in one forward pass.

The frozen base is the same for everybody, so its forward and backward are shared; each client's tokens, a segment of
the packed row, go through that client's own A and B: ``h = W0 x + (lora_alpha / r) B_k A_k x``. The factors of all
clients lie in one tensor a layer, so that one elementwise optimizer (AdamW) steps all clients exactly as K would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.nn.functional import linear

from fl_lightning.errors import InputError
from fl_lightning.modeling.lora import ADAPTER, lora_layers
from fl_lightning.state import Factor, LoraState


@dataclass
class _Site:
    """A LoRA layer, with its factors stacked: A of shape (K, r, in_features), B of shape (K, out_features, r)."""

    name: str
    layer: Any
    scaling: float
    dropout: float
    a: torch.nn.Parameter
    b: torch.nn.Parameter


class LoraCohort:
    """The adapters of K clients on one PEFT model.

    Usage: `load` the clients' states, then inside `attached()` call `arrange` before every forward pass.

    Args:
        model: the PEFT model; its own adapter is switched off while the cohort is attached.

    Raises:
        InputError: if a LoRA layer is not a linear one.
    """

    def __init__(self, model: PeftModel) -> None:
        self.size = 0
        self._sites: list[_Site] = []
        self._segments: tuple[int, ...] = ()
        self._generators: Sequence[torch.Generator | np.random.Generator] | None = None
        for name, layer in lora_layers(model).items():
            if layer.lora_embedding_A or layer.lora_variant:
                raise InputError(f"lora.target_modules: {name} is not a plain LoRA linear layer; name linear layers")
            if name.rsplit(".", 1)[-1] in ("lm_head", "embed_out"):
                raise InputError(f"lora.target_modules: {name} is the output head, which sees responses only; drop it")
            dropout = layer.lora_dropout[ADAPTER]
            empty = torch.nn.Parameter(torch.empty(0))
            p = float(getattr(dropout, "p", 0.0))
            self._sites.append(_Site(name, layer, float(layer.scaling[ADAPTER]), p, empty, empty))

    def load(
        self, states: Sequence[Mapping[str, torch.Tensor]], device: torch.device | str, trains: Factor = "all"
    ) -> None:
        """Take the states of K clients; new fp32 parameters on `device`, of which one factor, or both, is trained."""
        self.size = len(states)
        for site in self._sites:
            a = torch.stack([state[f"{site.name}.lora_A.weight"] for state in states])
            b = torch.stack([state[f"{site.name}.lora_B.weight"] for state in states])
            site.a = torch.nn.Parameter(a.to(device, torch.float32, copy=True), trains in ("a", "all"))
            site.b = torch.nn.Parameter(b.to(device, torch.float32, copy=True), trains in ("b", "all"))

    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained of A and B of every layer; the first dimension of each is the client."""
        return [p for site in self._sites for p in (site.a, site.b) if p.requires_grad]

    def state(self, index: int) -> LoraState:
        """A snapshot of one client: detached fp32 CPU copies, sorted by name."""
        found = {}
        for site in self._sites:
            found[f"{site.name}.lora_A.weight"] = site.a[index].detach().to("cpu", torch.float32, copy=True)
            found[f"{site.name}.lora_B.weight"] = site.b[index].detach().to("cpu", torch.float32, copy=True)
        return dict(sorted(found.items()))

    @torch.no_grad()
    def pull_gradients(self, starts: Sequence[torch.Tensor], strength: float) -> None:
        """Add the gradient of ``strength / 2 · ‖θ_k − θ_k,start‖²`` to each client's (FedProx).

        Args:
            starts: what `parameters` held when the fit began.
            strength: μ.
        """
        for parameter, start in zip(self.parameters(), starts, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=strength)

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> None:
        """Scale each client's gradient to a norm of at most `max_norm`, as `clip_grad_norm_` does for one."""
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if not grads or max_norm <= 0:
            return
        squares = sum(g.flatten(1).square().sum(1) for g in grads)
        factor = (max_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)  # type: ignore[union-attr]
        for g in grads:
            g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))

    def arrange(
        self, segments: Sequence[int], generators: Sequence[torch.Generator | np.random.Generator] | None = None
    ) -> None:
        """Say whose tokens come next: `segments[k]` tokens of client k, in row order; Σ is the row's length.

        Args:
            segments: tokens of each client; 0 for a client that has none in this row.
            generators: one for each client, for its dropout; None turns dropout off.

        Raises:
            ValueError: if there are not exactly K of either.
        """
        if len(segments) != self.size or (generators is not None and len(generators) != self.size):
            raise ValueError(f"got {len(segments)} segments, wanted one for each of the {self.size} clients")
        self._segments, self._generators = tuple(segments), generators

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """While this block runs, the base model's LoRA layers use the cohort's factors instead of their own."""
        handles = []
        try:
            for site in self._sites:
                site.layer.enable_adapters(False)
                handles.append(site.layer.register_forward_hook(self._hook(site)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for site in self._sites:
                site.layer.enable_adapters(True)

    def _hook(self, site: _Site) -> Any:
        def add_update(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + self._update(site, inputs[0]).to(output.dtype)

        return add_update

    def _update(self, site: _Site, x: torch.Tensor) -> torch.Tensor:
        """``(lora_alpha / r) B_k A_k x`` on each client's segment: (1, T, in_features) to (1, T, out_features)."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(site.a.dtype)
        parts = []
        # unbind and not indexing: its backward is one stack, where that of K selections fills K whole tensors.
        down, up = (site.a * site.scaling).unbind(0), site.b.unbind(0)
        for k, part in enumerate(torch.split(x, list(self._segments), dim=1)):
            if part.shape[1]:
                dropped = self._drop(part, site.dropout, k)
                parts.append(linear(linear(dropped, down[k]), up[k]))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _drop(self, x: torch.Tensor, p: float, client: int) -> torch.Tensor:
        if p == 0.0 or self._generators is None:
            return x
        return x * keep_mask(x, p, self._generators[client])


def keep_mask(x: torch.Tensor, p: float, generator: torch.Generator | np.random.Generator) -> torch.Tensor:
    """Dropout's factors for x: 0 with probability p, else 1 / (1 − p); drawn from the generator alone.

    On a CPU the generator is NumPy's, whose raw 16-bit draws cost a fifth of torch's Bernoulli draws; p is rounded to
    1/65536 there.
    """
    if isinstance(generator, torch.Generator):
        return torch.empty_like(x).bernoulli_(1 - p, generator=generator).div_(1 - p)
    words = (x.numel() + 3) // 4
    draws = generator.bit_generator.random_raw(words).view(np.uint16)[: x.numel()]
    keep = torch.from_numpy(draws >= round(p * 65536)).view(x.shape)
    return keep.to(x.dtype).mul_(1 / (1 - p))


def dropout_generator(seed: int, device: torch.device) -> torch.Generator | np.random.Generator:
    """A client's generator for `keep_mask` on this device."""
    if device.type == "cpu":
        return np.random.Generator(np.random.SFC64(seed))
    return torch.Generator(device).manual_seed(seed)
