"""K clients' adapters on one base model: LoRA factors that train in one forward pass.

The frozen base is the same for all clients, so they share its forward and backward pass. Each client's tokens, a
segment of the packed row, go through that client's A and B: ``h = W0 x + s_k B_k A_k x``, with s_k = lora_alpha / r,
for all clients of a layer in one grouped product. The A of all layers and clients are one parameter, and so are the B
(`fl_lightning.modeling.stacked_factors`): an elementwise optimizer (AdamW) steps all clients exactly as K optimizers
would. Clients of lower rank are padded with zeros in both factors; the gradients of the padding are zero, so it stays
zero.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from fl_lightning.errors import InputError
from fl_lightning.linalg.own_mixture import rest_of
from fl_lightning.modeling.cohort_mixer import CohortMixer
from fl_lightning.modeling.cohort_row import CohortRow
from fl_lightning.modeling.cohort_sites import CohortSite, cohort_sites
from fl_lightning.modeling.compute_dtype import cast, compute_dtype
from fl_lightning.modeling.dropout import feature_keys, keep_mask, token_keys
from fl_lightning.modeling.low_rank_product import Segments, low_rank_product
from fl_lightning.modeling.stacked_factors import StackedFactor, stack_products
from fl_lightning.state import Factor, LoraState


class LoraCohort:
    """The adapters of K clients on one PEFT model.

    Usage: `load` the clients' states, then inside `attached()` call `set_segments` before every forward pass.

    Args:
        model: the PEFT model; its built-in adapter is off while the cohort is attached.

    Attributes:
        mixer: weighs the clients' adapters against their frozen products; None where fixed numbers do.

    Raises:
        InputError: if a LoRA layer is not linear, or is the output head or part of an expert.
    """

    def __init__(self, model: PeftModel) -> None:
        self.size = 0
        self.mixer: CohortMixer | None = None
        self._sites = cohort_sites(model)
        self._row = CohortRow(None)
        self._device = torch.device("cpu")

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
            states: K states of any ranks, with their learned weights if they have some.
            device: device of the parameters.
            trainable_factor: the factor that is trained, or both.
            relative_scalings: each client's lora_alpha / r divided by the model's; None means 1.
            frozen_products: for each client (A, B) of a product that is added at the model's scale and not trained, or
                an empty mapping; None takes those of gated adapters. Neighbors with the very same tensors share
                their computation.
        """
        is_moved = not self.size or torch.device(device) != self._device  # else the keys of dropout stay where they are
        self.size, self._device = len(states), torch.device(device)
        self._a, self._b = self._stack(states, trainable_factor)
        self.mixer = CohortMixer.of(states, [site.name for site in self._sites], self._device)
        sizes = torch.tensor(self._a.sizes)
        scalings, kept = torch.tensor([[site.scaling, 1 - site.dropout] for site in self._sites]).unbind(1)
        relative = torch.tensor(relative_scalings or [1.0])[:, None]
        # With dropout what is kept is scaled by 1 / (1 − p): here, once a row, instead of in every layer.
        self._scalings = (relative * scalings.repeat_interleave(sizes)).to(device)
        self._dropout_scalings = (relative * (scalings / kept).repeat_interleave(sizes)).to(device)
        products = list(frozen_products or map(rest_of, states))
        same = itertools.groupby(products, key=lambda state: [id(tensor) for tensor in state.values()])
        runs = [(next(group), 1 + sum(1 for _ in group)) for _, group in same]
        self._runs = [length for _, length in runs]
        for site, (a, b) in zip(self._sites, self._factor_names(), strict=True):
            pairs = [(site.scaling * state[a], state[b]) if state else None for state, _ in runs]
            site.frozen_product = stack_products(pairs, self._device)
            if site.dropout and is_moved:
                site.feature_keys = feature_keys(site.name, states[0][a].shape[1], self._device)

    def _factor_names(self) -> list[tuple[str, str]]:
        return [(f"{site.name}.lora_A.weight", f"{site.name}.lora_B.weight") for site in self._sites]

    def _stack(
        self, states: Sequence[Mapping[str, torch.Tensor]], trainable_factor: Factor
    ) -> tuple[StackedFactor, StackedFactor]:
        a, b = zip(*self._factor_names(), strict=True)
        return (
            StackedFactor([[s[n] for n in a] for s in states], 0, self._device, trainable_factor in ("a", "all")),
            StackedFactor([[s[n] for n in b] for s in states], 1, self._device, trainable_factor in ("b", "all")),
        )

    def values_of(self, states: Sequence[Mapping[str, torch.Tensor]], trainable_factor: Factor) -> list[torch.Tensor]:
        """Other states of the K clients, of the loaded ranks, as values of `parameters`."""
        factors = self._stack(states, trainable_factor)
        return [factor.parameter.detach() for factor in factors if factor.parameter.requires_grad]

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable factors, A or B or both, each of all layers, and gates; row k of each is client k."""
        factors = [factor.parameter for factor in (self._a, self._b) if factor.parameter.requires_grad]
        return [*factors, *(self.mixer.parameters() if self.mixer else [])]

    def values(self) -> list[torch.Tensor]:
        """All that rows are computed with: A and B of all layers, and their scalings without and with dropout."""
        return [self._a.parameter, self._b.parameter, self._scalings, self._dropout_scalings]

    @contextlib.contextmanager
    def with_values(self, values: Sequence[Any]) -> Iterator[None]:
        """Within this block rows are computed with other tensors in the place of `values`."""
        original: Sequence[Any] = self.values()
        try:
            self._a.parameter, self._b.parameter, self._scalings, self._dropout_scalings = values
            yield
        finally:
            self._a.parameter, self._b.parameter, self._scalings, self._dropout_scalings = original

    @property
    def has_frozen_products(self) -> bool:
        """Whether products that are not trained are added to those of the clients, or would be weighed."""
        return self.mixer is not None or any(site.frozen_product is not None for site in self._sites)

    def unused_layers(self) -> list[str]:
        """Names of the layers that no token has passed in any forward pass."""
        return [site.name for site in self._sites if not site.is_used]

    def state(self, index: int) -> LoraState:
        """A snapshot of one client: detached fp32 CPU copies, sorted by name; its learned weights too."""
        a, b = (factor.of_client(factor.parameter, index) for factor in (self._a, self._b))
        state = {f"{site.name}.lora_A.weight": factor for site, factor in zip(self._sites, a, strict=True)}
        state |= {f"{site.name}.lora_B.weight": factor for site, factor in zip(self._sites, b, strict=True)}
        return dict(sorted((state | (self.mixer.state(index) if self.mixer else {})).items()))

    @torch.no_grad()
    def add_proximal_gradients(self, anchors: Sequence[torch.Tensor], strength: float) -> None:
        """Add the gradient of the proximal term ``μ / 2 · ‖θ_k − anchor_k‖²`` to each client's gradient.

        FedProx, Li et al. 2020, arXiv 1812.06127, with the start of the fit as the anchor; Ditto, Li et al. 2021, arXiv
        2012.04221, with the department's adapter.

        Args:
            anchors: values of `parameters`.
            strength: μ, or Ditto's λ.
        """
        for parameter, anchor in zip(self.parameters(), anchors, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - anchor, alpha=strength)

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> None:
        """Scale each client's gradient to a norm of at most `max_norm`, as `clip_grad_norm_` does for one model."""
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if not grads or max_norm <= 0:
            return
        norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in grads]).norm(dim=0)
        factor = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for g in grads:
            g.mul_(factor[:, None])

    def row(
        self,
        segments: Sequence[int],
        streams: Sequence[np.random.Philox] | None = None,
        lengths: Sequence[int] = (),
        padding: int = 0,
    ) -> CohortRow:
        """A row with `segments[k]` tokens of client k, in order, for `set_row`.

        It depends on no parameter, so it can be made ahead.

        Args:
            segments: number of tokens of each client, perhaps 0; their sum is the length of the row.
            streams: one per client, for its dropout; None turns dropout off.
            lengths: of the row's sequences, for models that get them padded on the right instead of in a row.
            padding: number of further tokens at the end of the row; they use the last client's factors.

        Raises:
            ValueError: if there are not exactly K of each.
        """
        if len(segments) != self.size or (streams is not None and len(streams) != self.size):
            counts = f"{len(segments)} segments" + ("" if streams is None else f" and {len(streams)} streams")
            raise ValueError(f"expected one segment and one stream for each of the {self.size} clients, got {counts}")
        keys = None if streams is None else token_keys(streams, segments, self._device, padding)
        segments = [*segments[:-1], segments[-1] + padding]
        iterator = iter(segments)
        runs = [sum(itertools.islice(iterator, run)) for run in self._runs]
        return CohortRow(
            Segments.from_sizes(segments, self._device),
            Segments.from_sizes(runs, self._device),
            tuple(lengths),
            keys,
        )

    def set_row(self, row: CohortRow) -> None:
        """Set the next row. Call it in the precision of the forward pass: it saves casts in every layer."""
        self._row = row
        if self.mixer is not None:
            self.mixer.set_row(row, compute_dtype(self._device))
        self._scale_factors()

    def set_segments(
        self,
        segments: Sequence[int],
        streams: Sequence[np.random.Philox] | None = None,
        lengths: Sequence[int] = (),
    ) -> None:
        """`set_row` of a new `row`."""
        self.set_row(self.row(segments, streams, lengths))

    def set_single_client(self) -> None:
        """Give all rows of the next inputs, of any shape, to the only client, without dropout; for generation.

        Raises:
            ValueError: if there are several clients.
        """
        if self.size != 1:
            raise ValueError(f"expected a cohort of one client, got {self.size}")
        self.set_row(CohortRow(None))

    def _scale_factors(self) -> None:
        """Set every layer's factors for the next row: all layers are scaled and cast in one operation."""
        dtype = compute_dtype(self._device)
        scalings = self._scalings if self._row.token_keys is None else self._dropout_scalings
        a, b = (self._a.parameter * scalings).to(dtype), self._b.parameter.to(dtype)
        for site, *factors in zip(self._sites, self._a.by_layer(a), self._b.by_layer(b), strict=True):
            site.factors = (factors[0], factors[1])

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

    def _hook(self, site: CohortSite) -> Any:
        def add_update(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            (x,), site.is_used = cast(inputs[:1], compute_dtype(self._device)), True
            is_row = self._row.clients is None or x.shape[:-1] == (1, self._row.num_tokens)
            update = self._update(site, x) if is_row else self._update_of_tokens(site, x)
            return output + cast((update,), output.dtype)[0]

        return add_update

    def _update(self, site: CohortSite, x: torch.Tensor) -> torch.Tensor:
        """``s_k B_k A_k x`` of each client's tokens, plus the frozen product: (…, in) to (…, out_features).

        The dimensions before the last hold the T tokens of the row, or all rows of the only client.
        """
        row, dropped = self._row, x
        if row.token_keys is not None and site.feature_keys is not None:
            dropped = x * keep_mask(row.token_keys, site.feature_keys, x.shape[-1], site.dropout)
        assert site.factors is not None
        a, b = cast(site.factors, x.dtype)
        update, beside = low_rank_product(dropped, a, b, row.clients), None
        if site.frozen_product is not None:
            a, b = cast(site.frozen_product, x.dtype)
            beside = low_rank_product(x, a, b, row.runs)
        if self.mixer is not None:
            return self.mixer.mix(site.name, x, update, beside)
        return update if beside is None else update + beside

    def _update_of_tokens(self, site: CohortSite, x: torch.Tensor) -> torch.Tensor:
        """The update where a model has the row's tokens in another shape: padded, or without the batch dimension."""
        tokens, row = x.flatten(0, -2), self._row
        if row.lengths and len(tokens) == len(row.lengths) * max(row.lengths) != row.num_tokens:
            update = self._update(site, tokens.index_select(0, row.positions))
            update = update.new_zeros(len(tokens), update.shape[-1]).index_copy(0, row.positions, update)
        elif len(tokens) == row.num_tokens:
            update = self._update(site, tokens)
        else:
            raise InputError(
                f"lora.target_modules: {site.name} sees {len(tokens)} of {row.num_tokens} tokens of a row, expected "
                "all; remove it"
            )
        return update.view(*x.shape[:-1], update.shape[-1])
