"""Products of LoRA factors: pairs of names, weights and scales of clients, their checks, and r × r arithmetic.

A layer's update is the product ``s B A`` of shape (out_features, in_features), with ``B`` (out_features, r) and ``A``
(r, in_features). It is added to the weight of a linear layer, and to the transposed weight of an embedding
(PEFT: ``lora_embedding_A`` (r, number of words), ``lora_embedding_B`` (width, r), weight (number of words, width)) and
of GPT-2's Conv1D. No function here forms the out × in matrix; all computations are on the factors, in fp64.
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
    """A client of a department: its normalized weight w_c, scale s_c, and state."""

    name: str
    weight: float
    scale: float
    state: Mapping[str, torch.Tensor]


class Department(NamedTuple):
    """A department's clients, sorted by name, and the layers that all of them have."""

    clients: list[Client]
    layers: dict[str, FactorNames]

    def factors(self, layer: str) -> list[Product]:
        """(B_c, A_c) of a layer for each client in fp64, of any ranks, in the order of `clients`.

        Raises:
            ValueError: if in or out differ between clients, B and A of one client do not match, or a value is not
            finite.
        """
        names = self.layers[layer]
        factors: list[Product] = []
        for client in self.clients:
            pair = {names.b: client.state[names.b], names.a: client.state[names.a]}
            if problem := problem_with(pair, pair):
                raise ValueError(f"client {client.name}, layer {layer}: {problem}")
            b, a = (tensor.detach().to("cpu", torch.float64) for tensor in pair.values())
            if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
                raise ValueError(
                    f"client {client.name}, layer {layer}: expected B of shape (out, r) and A of shape "
                    f"(r, in), got {tuple(b.shape)} and {tuple(a.shape)}"
                )
            shape = (b.shape[0], a.shape[1])
            expected = (factors[0].up.shape[0], factors[0].down.shape[1]) if factors else shape
            if shape != expected:
                raise ValueError(
                    f"client {client.name}, layer {layer}: expected (out, in) {expected} as for client "
                    f"{self.clients[0].name}, got {shape}"
                )
            factors.append(Product(b, a))
        return factors

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
    """{layer: names of its two factors}; the layer's name is the part of the parameter's before ``.lora_A``.

    Raises:
        ValueError: if a layer has one factor only, or a name is neither A nor B (a bias, a magnitude vector).

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
            raise ValueError(f"{_shown(name)}: expected names of LoRA factors, got neither lora_A nor lora_B")
        start, marker, end = next(p for m in ("lora_embedding_", "lora_") if (p := name.rpartition(m))[1])
        names = FactorNames(start + marker + "A" + end[1:], start + marker + "B" + end[1:])
        if missing := [n for n in names if n not in state]:
            raise ValueError(f"{_shown(name)}: expected both factors of a product, got no {_shown(missing[0])}")
        if layers.setdefault(start.removesuffix("."), names) != names:
            raise ValueError(f"{_shown(name)}: expected one pair of factors for its layer, got two")
    return layers


def gather(
    clients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float] | float = 1.0,
) -> Department:
    """Check names, weights and scales, and sort the clients; no tensor is read yet.

    Args:
        clients: {client: LoRA state with both factors of every layer}; ranks may differ.
        weights: {client: weight}; normalized here.
        scales: s_c per client, or one for all.

    Raises:
        ValueError: if there are no clients, or names, weights or scales do not match.
    """
    shares, factors = normalized_weights(clients, weights), client_scales(clients, scales)
    members: list[Client] = []
    layers: dict[str, FactorNames] = {}
    for name in sorted(clients):
        try:
            client_layers = pair_names(clients[name])
        except ValueError as error:
            raise ValueError(f"client {name}: {error}") from None
        if members and client_layers != layers:
            known = client_layers.keys() | layers.keys()
            layer = min(layer for layer in known if client_layers.get(layer) != layers.get(layer))
            got, expected = (" and ".join(map(_shown, side.get(layer, ["none"]))) for side in (client_layers, layers))
            raise ValueError(
                f"client {name}, layer {_shown(layer)}: expected {expected} as for client {members[0].name}, got {got}"
            )
        layers = client_layers
        members.append(Client(name, shares[name], factors[name], clients[name]))
    return Department(members, layers)


def normalized_weights(clients: Mapping[str, object], weights: Mapping[str, float]) -> dict[str, float]:
    """{client: w_c = weight / Σ weights}, clients in sorted order.

    Raises:
        ValueError: if there are no clients, weights are for other clients, or one is not positive and finite.
    """
    if not clients:
        raise ValueError("clients to combine: expected at least one, got none")
    _same_clients("weights", weights, clients)
    for name in sorted(weights):
        if not (weights[name] > 0 and math.isfinite(weights[name])):
            raise ValueError(f"client {name}: expected a positive finite weight, got {weights[name]}")
    total = sum(weights[name] for name in sorted(weights))
    return {name: weights[name] / total for name in sorted(weights)}


def client_scales(clients: Mapping[str, object], scales: Mapping[str, float] | float) -> dict[str, float]:
    """{client: s_c}, clients in sorted order, from one number for all or one each.

    Raises:
        ValueError: if scales are for other clients, or one is not positive and finite.
    """
    each = scales if isinstance(scales, Mapping) else dict.fromkeys(clients, scales)
    _same_clients("scales", each, clients)
    for name in sorted(each):
        if not (each[name] > 0 and math.isfinite(each[name])):
            raise ValueError(f"client {name}: expected a positive finite scale, got {each[name]}")
    return {name: float(each[name]) for name in sorted(each)}


def common_scaling(clients: Mapping[str, object], scales: Mapping[str, float] | float) -> float:
    """The scale of all clients, which must be the same since factors are averaged.

    Raises:
        ValueError: as `client_scales`, and if two clients' scales differ.
    """
    each = client_scales(clients, scales)
    first = min(each)
    for name, scale in each.items():
        if scale != each[first]:
            raise ValueError(
                f"client {name}: expected scale {each[first]} as for client {first}, got {scale}; factors are averaged"
            )
    return each[first]


def inner(first: Product, second: Product) -> float:
    """Inner product ``⟨B₁A₁, B₂A₂⟩ = trace((A₂A₁ᵀ)(B₁ᵀB₂))`` of two products, from r × r Gram matrices.

    Example:
        >>> column, row = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]])  # [[3, 4], [6, 8]]
        >>> inner(Product(column, row), Product(column, row))
        125.0
    """
    ups = first.up.double().T @ second.up.double()
    downs = first.down.double() @ second.down.double().T
    return float((ups * downs).sum())


def product_norm(product: Product) -> float:
    """``‖B A‖_F`` from r × r Gram matrices.

    If columns cancel each other, a result below about 1e-8 of their norms is a rounding error.
    """
    return math.sqrt(max(inner(product, product), 0.0))


class SVD(NamedTuple):
    """Singular value decomposition ``left @ diag(values) @ right``; nonzero values only, largest first."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def svd(product: Product) -> SVD:
    """SVD of a product from QR of both factors and the SVD of the small R_B R_Aᵀ, in fp64.

    Values that are zero to fp64 precision, relative to the terms ``‖u_i‖ ‖v_i‖`` of the product, are dropped, so a
    product that cancels out has rank zero. The largest entry of each right vector is positive, so signs do not depend
    on the machine (singular vectors of equal values are unique only up to a rotation).

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


def _same_clients(what: str, values: Mapping[str, object], clients: Mapping[str, object]) -> None:
    if values.keys() != clients.keys():
        client = min(values.keys() ^ clients.keys())
        expected, got = ("one", "none") if client in clients else ("none", "one, but no state")
        raise ValueError(f"client {client}: expected {expected} in {what}, got {got}")


def _shown(name: str) -> str:
    """A name shortened and escaped for a message, since a client chose it."""
    return ascii(name)[1:-1][:120]
