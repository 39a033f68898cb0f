"""Products of LoRA factors, and what all combiners share: pairs of names, scales, checks, r × r arithmetic.

A layer's update is the product ``s B A`` of shape (out_features, in_features), with ``B`` (out_features, r) and ``A``
(r, in_features). It is the change of a linear layer's weight as it is, and of the transposed weight in an embedding
(PEFT: ``lora_embedding_A`` (r, number of words), ``lora_embedding_B`` (width, r), weight (number of words, width)) and
in GPT-2's Conv1D. Nothing here makes the out × in matrix: all is done on the factors, in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from fl_lightning.state import is_lora_a, is_lora_b, problem_with


class FactorNames(NamedTuple):
    """Names of one layer's two factors in a `LoraState`."""

    a: str
    b: str


class Product(NamedTuple):
    """A matrix in factors, ``up @ down``: shapes (out_features, k) and (k, in_features)."""

    up: torch.Tensor
    down: torch.Tensor


class Client(NamedTuple):
    """One client's part in a department: w_c (normalised), s_c and its state."""

    name: str
    weight: float
    scale: float
    state: Mapping[str, torch.Tensor]


class Department(NamedTuple):
    """A department's clients, sorted by name, and the layers that all of them have."""

    clients: list[Client]
    layers: dict[str, FactorNames]

    def factors(self, layer: str) -> list[Product]:
        """Each client's (B_c, A_c) of a layer in fp64, of any ranks, in the order of `clients`.

        Raises:
            ValueError: if in or out differ between clients, B and A of one client do not fit, or a value is not finite.
        """
        names = self.layers[layer]
        found: list[Product] = []
        for client in self.clients:
            pair = {names.b: client.state[names.b], names.a: client.state[names.a]}
            if problem := problem_with(pair, pair):
                raise ValueError(f"client {client.name}, layer {layer}: {problem}")
            b, a = (tensor.detach().to("cpu", torch.float64) for tensor in pair.values())
            if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
                raise ValueError(
                    f"client {client.name}, layer {layer}: got B of shape {tuple(b.shape)} and A of shape "
                    f"{tuple(a.shape)}, wanted (out, r) and (r, in)"
                )
            got = (b.shape[0], a.shape[1])
            wanted = (found[0].up.shape[0], found[0].down.shape[1]) if found else got
            if got != wanted:
                raise ValueError(
                    f"client {client.name}, layer {layer}: got (out, in) {got}, wanted {wanted} as client "
                    f"{self.clients[0].name} has"
                )
            found.append(Product(b, a))
        return found

    def stack(self, factors: Sequence[Product]) -> Product:
        """Σ w_c s_c B_c A_c in factors: ``[w_1 s_1 B_1, …, w_n s_n B_n]`` and ``[A_1; …; A_n]``, of rank Σ r_c."""
        ups = [client.weight * client.scale * f.up for client, f in zip(self.clients, factors, strict=True)]
        return Product(torch.cat(ups, dim=1), torch.cat([f.down for f in factors]))

    def mean(self, factors: Sequence[Product]) -> Product:
        """(B̄, Ā) of factors of one rank: ``Σ w_c B_c`` and ``Σ w_c A_c``."""
        up, down = torch.zeros_like(factors[0].up), torch.zeros_like(factors[0].down)
        for client, factor in zip(self.clients, factors, strict=True):
            up.add_(factor.up, alpha=client.weight)
            down.add_(factor.down, alpha=client.weight)
        return Product(up, down)


def pair_names(state: Mapping[str, torch.Tensor]) -> dict[str, FactorNames]:
    """The two factors of each layer, by the layer's name, which is what stands before ``.lora_A`` in the parameter's.

    Raises:
        ValueError: if a factor stands alone, or a name is neither A nor B (a bias, a magnitude vector).

    Example:
        >>> names = ["q.lora_B.weight", "q.lora_A.weight", "e.lora_embedding_A", "e.lora_embedding_B"]
        >>> for layer, names in pair_names(dict.fromkeys(names, torch.ones(1, 1))).items():
        ...     print(layer, *names)
        e e.lora_embedding_A e.lora_embedding_B
        q q.lora_A.weight q.lora_B.weight
    """
    layers: dict[str, FactorNames] = {}
    for name in sorted(state):
        if name.endswith(".bias") or not (is_lora_a(name) or is_lora_b(name)):
            raise ValueError(f"{_shown(name)}: got neither lora_A nor lora_B, wanted factors of products only")
        start, marker, end = next(p for m in ("lora_embedding_", "lora_") if (p := name.rpartition(m))[1])
        names = FactorNames(start + marker + "A" + end[1:], start + marker + "B" + end[1:])
        if missing := [n for n in names if n not in state]:
            raise ValueError(f"{_shown(name)}: got no {_shown(missing[0])} beside it, wanted both factors of a product")
        if layers.setdefault(start.removesuffix("."), names) != names:
            raise ValueError(f"{_shown(name)}: got a second pair of factors for its layer, wanted one")
    return layers


def scaling(lora_alpha: float, r: int, rslora: bool = False) -> float:
    """The scale s of a LoRA product: lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA (arXiv 2312.03732).

    Raises:
        ValueError: if r is less than one.

    Example:
        >>> scaling(16, 4), scaling(16, 4, rslora=True)
        (4.0, 8.0)
    """
    if r < 1:
        raise ValueError(f"r: got {r}, wanted at least 1")
    return lora_alpha / math.sqrt(r) if rslora else lora_alpha / r


def gather(
    clients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float] | float = 1.0,
) -> Department:
    """Check names, weights and scales and put the clients into sorted order; no tensor is read yet.

    Args:
        clients: {client: LoRA state with both factors of every layer}; ranks may differ.
        weights: {client: weight}, of any sum; normalised here.
        scales: s_c per client, or one for all.

    Raises:
        ValueError: if there are no clients, or names, weights or scales do not fit.
    """
    shares, factors = normalized_weights(clients, weights), client_scales(clients, scales)
    found: list[Client] = []
    layers: dict[str, FactorNames] = {}
    for name in sorted(clients):
        try:
            own = pair_names(clients[name])
        except ValueError as error:
            raise ValueError(f"client {name}: {error}") from None
        if found and own != layers:
            odd = min(layer for layer in own.keys() | layers.keys() if own.get(layer) != layers.get(layer))
            got, wanted = (" and ".join(map(_shown, side.get(odd, ["none"]))) for side in (own, layers))
            raise ValueError(
                f"client {name}, layer {_shown(odd)}: got {got}, wanted {wanted} as client {found[0].name} has"
            )
        layers = own
        found.append(Client(name, shares[name], factors[name], clients[name]))
    return Department(found, layers)


def normalized_weights(clients: Mapping[str, object], weights: Mapping[str, float]) -> dict[str, float]:
    """w_c = weight / Σ weights, by client in sorted order.

    Raises:
        ValueError: if there are no clients, weights are for others, or one is not positive and finite.
    """
    if not clients:
        raise ValueError("no clients to combine: got none, wanted at least one")
    _same_clients("weights", weights, clients)
    for name in sorted(weights):
        if not (weights[name] > 0 and math.isfinite(weights[name])):
            raise ValueError(f"client {name}: got weight {weights[name]}, wanted a positive finite number")
    total = sum(weights[name] for name in sorted(weights))
    return {name: weights[name] / total for name in sorted(weights)}


def client_scales(clients: Mapping[str, object], scales: Mapping[str, float] | float) -> dict[str, float]:
    """s_c by client in sorted order, from one number for all or one each.

    Raises:
        ValueError: if scales are for other clients, or one is not positive and finite.
    """
    each = scales if isinstance(scales, Mapping) else dict.fromkeys(clients, scales)
    _same_clients("scales", each, clients)
    for name in sorted(each):
        if not (each[name] > 0 and math.isfinite(each[name])):
            raise ValueError(f"client {name}: got scale {each[name]}, wanted a positive finite number")
    return {name: float(each[name]) for name in sorted(each)}


def common_scaling(clients: Mapping[str, object], scales: Mapping[str, float] | float) -> float:
    """The scale that all clients share, as averaging of factors needs.

    Raises:
        ValueError: as `client_scales`, and if two clients' scales differ.
    """
    each = client_scales(clients, scales)
    first = min(each)
    for name, scale in each.items():
        if scale != each[first]:
            raise ValueError(
                f"client {name}: got scale {scale}, wanted {each[first]} as client {first} has (factors are averaged)"
            )
    return each[first]


def inner(first: Product, second: Product) -> float:
    """⟨B₁A₁, B₂A₂⟩ = trace((A₂A₁ᵀ)(B₁ᵀB₂)): the sum over all entries of both matrices' product, from r × r Grams.

    Example:
        >>> column, row = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]])  # [[3, 4], [6, 8]]
        >>> inner(Product(column, row), Product(column, row))
        125.0
    """
    ups = first.up.double().T @ second.up.double()
    downs = first.down.double() @ second.down.double().T
    return float((ups * downs).sum())


def product_norm(product: Product) -> float:
    """‖B A‖_F from r × r Grams.

    Where the columns cancel each other, less than about 1e-8 of their own size is rounding.
    """
    return math.sqrt(max(inner(product, product), 0.0))


class SVD(NamedTuple):
    """A matrix in singular vectors, ``left @ diag(values) @ right``, none of the values zero, largest first."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def svd(product: Product) -> SVD:
    """Singular values and vectors of a product, through QR of both factors and the SVD of the small R_B R_Aᵀ, in fp64.

    Values that are zero to fp64 precision beside the terms ``‖u_i‖ ‖v_i‖`` of the product are dropped, so that a
    product that cancels has rank zero. Each right vector's largest entry is positive, which makes the signs the same
    everywhere (vectors of equal values stay free to turn within their plane).

    Example:
        >>> svd(Product(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.eye(2))).values.tolist()
        [3.0, 2.0]
    """
    up, down = product.up.double(), product.down.double()
    left_basis, left_small = torch.linalg.qr(up)
    right_basis, right_small = torch.linalg.qr(down.T)
    left, values, right = torch.linalg.svd(left_small @ right_small.T, full_matrices=False)
    terms = float((up.norm(dim=0) * down.norm(dim=1)).sum())
    precision = torch.finfo(torch.float64).eps * max(up.shape[0], down.shape[1], up.shape[1])
    rank = int((values > precision * terms).sum())
    left, right = left_basis @ left[:, :rank], right[:rank] @ right_basis.T
    signs = torch.ones(rank, dtype=torch.float64)
    if rank:
        signs = torch.sign(right.gather(1, right.abs().argmax(dim=1, keepdim=True))).squeeze(1)
    return SVD(left * signs, values[:rank], signs[:, None] * right)


def _same_clients(what: str, given: Mapping[str, object], clients: Mapping[str, object]) -> None:
    if given.keys() != clients.keys():
        odd = min(given.keys() ^ clients.keys())
        got, wanted = ("none", "one") if odd in clients else ("one", "none: it sent no state")
        raise ValueError(f"client {odd}: got {got} in {what}, wanted {wanted}")


def _shown(name: str) -> str:
    """A name as it may stand in a message: a client chose it."""
    return ascii(name)[1:-1][:120]
