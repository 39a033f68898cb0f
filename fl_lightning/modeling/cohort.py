"""K clients' adapters on one base model: stacked LoRA factors that train in one forward pass.

The frozen base is the same for all clients, so they share its forward and backward pass. Each client's tokens, a
segment of the packed row, go through that client's A and B: ``h = W0 x + s_k B_k A_k x``, with s_k = lora_alpha / r.
Each layer holds the factors of all clients in one tensor, so one elementwise optimizer (AdamW) steps all clients
exactly as K optimizers would. Clients of lower rank are padded with zeros in both factors; the gradients of the padding
are zero, so it stays zero.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import linear

from fl_lightning.data.packing import real_tokens
from fl_lightning.errors import InputError
from fl_lightning.modeling.dropout import Generator, keep_mask
from fl_lightning.modeling.lora import ADAPTER, lora_layers
from fl_lightning.state import Factor, LoraState

EXPERT = re.compile(r"\.experts\.\d+\.")
"""In names of layers of a single expert, in models that do not keep all experts in one tensor."""


@dataclass
class _Site:
    """A LoRA layer, with its factors stacked: A of shape (K, r, in_features), B of shape (K, out_features, r).

    Attributes:
        relative_scalings: s_k of the clients divided by the model's, shape (K, 1, 1); None if all are 1.
        ranks: of the clients.
        frozen_products: (A, B) for each run of neighboring clients with the same frozen product, or None.
        is_used: whether tokens have passed it.
    """

    name: str
    layer: Any
    scaling: float
    dropout: float
    a: torch.nn.Parameter
    b: torch.nn.Parameter
    relative_scalings: torch.Tensor | None = None
    ranks: tuple[int, ...] = ()
    frozen_products: tuple[tuple[torch.Tensor, torch.Tensor] | None, ...] = ()
    is_used: bool = False


class LoraCohort:
    """The adapters of K clients on one PEFT model.

    Usage: `load` the clients' states, then inside `attached()` call `set_segments` before every forward pass.

    Args:
        model: the PEFT model; its built-in adapter is off while the cohort is attached.

    Raises:
        InputError: if a LoRA layer is not linear, or is the output head or part of an expert.
    """

    def __init__(self, model: PeftModel) -> None:
        self.size = 0
        self._sites: list[_Site] = []
        self._segments: tuple[int, ...] | None = ()
        self._lengths: tuple[int, ...] = ()
        self._runs: list[int] = []
        self._generators: Sequence[Generator] | None = None
        for name, layer in lora_layers(model).items():
            if layer.lora_embedding_A or layer.lora_variant:
                raise InputError(f"lora.target_modules: {name} is not a plain LoRA linear layer; choose linear layers")
            if name.rsplit(".", 1)[-1] in ("lm_head", "embed_out"):
                raise InputError(
                    f"lora.target_modules: {name} is the output head, which sees responses only; remove it"
                )
            if EXPERT.search(name):
                raise InputError(f"lora.target_modules: {name} is part of an expert, which sees few tokens; remove it")
            dropout = layer.lora_dropout[ADAPTER]
            empty = torch.nn.Parameter(torch.empty(0))
            p = float(getattr(dropout, "p", 0.0))
            self._sites.append(_Site(name, layer, float(layer.scaling[ADAPTER]), p, empty, empty))

    def load(
        self,
        states: Sequence[Mapping[str, torch.Tensor]],
        device: torch.device | str,
        trainable_factor: Factor = "all",
        *,
        relative_scalings: Sequence[float] | None = None,
        frozen_products: Sequence[Mapping[str, torch.Tensor]] | None = None,
    ) -> None:
        """Load the states of K clients into new fp32 parameters on `device`.

        Args:
            states: K states of any ranks.
            device: device of the parameters.
            trainable_factor: the factor that is trained, or both.
            relative_scalings: each client's lora_alpha / r divided by the model's; None means 1.
            frozen_products: for each client (A, B) of a product that is added at the model's scale and not trained, or
                an empty mapping. Neighbors with the very same tensors share their computation.
        """
        self.size = len(states)
        products = list(frozen_products or [{}] * self.size)
        same = itertools.groupby(products, key=lambda state: [id(tensor) for tensor in state.values()])
        runs = [(next(group), 1 + sum(1 for _ in group)) for _, group in same]
        self._runs = [length for _, length in runs]
        scaled = relative_scalings is not None and any(scaling != 1.0 for scaling in relative_scalings)
        for site in self._sites:
            name_a, name_b = f"{site.name}.lora_A.weight", f"{site.name}.lora_B.weight"
            site.ranks = tuple(state[name_a].shape[0] for state in states)
            a = torch.stack([_padded(state[name_a], 0, max(site.ranks)) for state in states])
            b = torch.stack([_padded(state[name_b], 1, max(site.ranks)) for state in states])
            site.a = torch.nn.Parameter(a.to(device, torch.float32, copy=True), trainable_factor in ("a", "all"))
            site.b = torch.nn.Parameter(b.to(device, torch.float32, copy=True), trainable_factor in ("b", "all"))
            site.relative_scalings = (
                torch.tensor(relative_scalings, dtype=torch.float32, device=device).view(-1, 1, 1) if scaled else None
            )
            site.frozen_products = tuple(
                (site.scaling * state[name_a].to(device, torch.float32), state[name_b].to(device, torch.float32))
                if state
                else None
                for state, _ in runs
            )

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable A and B of every layer; the first dimension of each is the client."""
        return [p for site in self._sites for p in (site.a, site.b) if p.requires_grad]

    def unused_layers(self) -> list[str]:
        """Names of the layers that no token has passed in any forward pass."""
        return [site.name for site in self._sites if not site.is_used]

    def state(self, index: int) -> LoraState:
        """A snapshot of one client: detached fp32 CPU copies, sorted by name."""
        state = {}
        for site in self._sites:
            rank = site.ranks[index]
            a, b = site.a[index, :rank], site.b[index, :, :rank]
            state[f"{site.name}.lora_A.weight"] = a.detach().to("cpu", torch.float32, copy=True).contiguous()
            state[f"{site.name}.lora_B.weight"] = b.detach().to("cpu", torch.float32, copy=True).contiguous()
        return dict(sorted(state.items()))

    @torch.no_grad()
    def add_proximal_gradients(self, starts: Sequence[torch.Tensor], strength: float) -> None:
        """Add the gradient of the proximal term ``μ / 2 · ‖θ_k − θ_k,start‖²`` to each client's gradient.

        FedProx, Li et al. 2020, arXiv 1812.06127.

        Args:
            starts: values of `parameters` when the fit began.
            strength: μ.
        """
        for parameter, start in zip(self.parameters(), starts, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=strength)

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> None:
        """Scale each client's gradient to a norm of at most `max_norm`, as `clip_grad_norm_` does for one model."""
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if not grads or max_norm <= 0:
            return
        squares = sum(g.flatten(1).square().sum(1) for g in grads)
        factor = (max_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)  # type: ignore[union-attr]
        for g in grads:
            g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))

    def set_segments(
        self,
        segments: Sequence[int],
        generators: Sequence[Generator] | None = None,
        lengths: Sequence[int] = (),
    ) -> None:
        """Set the clients' segments of the next row: `segments[k]` tokens of client k, in order.

        Args:
            segments: number of tokens of each client, perhaps 0; their sum is the length of the row.
            generators: one per client, for its dropout; None turns dropout off.
            lengths: of the row's sequences, for models that get them padded on the right instead of in a row.

        Raises:
            ValueError: if there are not exactly K of each.
        """
        if len(segments) != self.size or (generators is not None and len(generators) != self.size):
            counts = f"{len(segments)} segments" + ("" if generators is None else f" and {len(generators)} generators")
            raise ValueError(
                f"expected one segment and one generator for each of the {self.size} clients, got {counts}"
            )
        self._segments, self._generators, self._lengths = tuple(segments), generators, tuple(lengths)

    def set_single_client(self) -> None:
        """Give all rows of the next inputs, of any shape, to the only client, without dropout; for generation.

        Raises:
            ValueError: if there are several clients.
        """
        if self.size != 1:
            raise ValueError(f"expected a cohort of one client, got {self.size}")
        self._segments, self._generators = None, None

    @property
    def generators(self) -> Sequence[Generator]:
        """The generator of each client's dropout; empty if dropout is off."""
        return self._generators or ()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Within this block the base model's LoRA layers use the cohort's factors instead of their built-in ones."""
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
            x, site.is_used = inputs[0], True
            is_row = self._segments is None or x.shape[:-1] == (1, sum(self._segments))
            update = self._update(site, x) if is_row else self._update_of_tokens(site, x)
            return output + update.to(output.dtype)

        return add_update

    def _update(self, site: _Site, x: torch.Tensor) -> torch.Tensor:
        """``s_k B_k A_k x`` on each client's segment, plus the frozen product: (1, T, in) to (1, T, out_features).

        For one client with all rows (`set_single_client`): (rows, T, in) to (rows, T, out_features).
        """
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(site.a.dtype)
        parts = []
        # unbind, not indexing: its backward is one stack, that of K selections fills K whole tensors.
        scaled = site.a * (site.scaling if site.relative_scalings is None else site.scaling * site.relative_scalings)
        down, up = scaled.unbind(0), site.b.unbind(0)
        segments = [x.shape[1]] if self._segments is None else list(self._segments)
        for k, part in enumerate(torch.split(x, segments, dim=1)):
            if part.shape[1]:
                dropped = self._drop(part, site.dropout, k)
                parts.append(linear(linear(dropped, down[k]), up[k]))
        update = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return (
            update
            if all(pair is None for pair in site.frozen_products)
            else update + self._frozen_update(site, x, update)
        )

    def _update_of_tokens(self, site: _Site, x: torch.Tensor) -> torch.Tensor:
        """The update where a model has the row's tokens in another shape: padded, or without the batch dimension."""
        tokens, total = x.flatten(0, -2), sum(self._segments or ())
        if self._lengths and len(tokens) == len(self._lengths) * max(self._lengths) != total:
            index = real_tokens(self._lengths).flatten().nonzero().squeeze(1).to(x.device)
            update = self._update(site, tokens.index_select(0, index)[None])[0]
            update = update.new_zeros(len(tokens), update.shape[-1]).index_copy(0, index, update)
        elif len(tokens) == total:
            update = self._update(site, tokens[None])[0]
        else:
            raise InputError(
                f"lora.target_modules: {site.name} sees {len(tokens)} of {total} tokens of a row, expected all; "
                "remove it"
            )
        return update.view(*x.shape[:-1], update.shape[-1])

    def _frozen_update(self, site: _Site, x: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """The contribution of the frozen products."""
        if self._segments is None:
            (pair,) = site.frozen_products
            return update.new_zeros(1) if pair is None else linear(linear(x, pair[0]), pair[1])
        parts, clients = [], iter(self._segments)
        lengths = [sum(itertools.islice(clients, run)) for run in self._runs]
        for pair, part in zip(site.frozen_products, torch.split(x, lengths, dim=1), strict=True):
            if part.shape[1]:
                nothing = update.new_zeros(1, part.shape[1], update.shape[2])
                parts.append(nothing if pair is None else linear(linear(part, pair[0]), pair[1]))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _drop(self, x: torch.Tensor, p: float, client: int) -> torch.Tensor:
        if p == 0.0 or self._generators is None:
            return x
        return x * keep_mask(x, p, self._generators[client])


def _padded(factor: torch.Tensor, dim: int, rank: int) -> torch.Tensor:
    """A factor padded with zeros to a rank, its size in that dimension."""
    missing = rank - factor.shape[dim]
    if not missing:
        return factor
    return torch.nn.functional.pad(factor, (0, 0, 0, missing) if dim == 0 else (0, missing))
