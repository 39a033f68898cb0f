"""Random departments, and their products as dense fp64 matrices, made without the code under test."""

import pytest
import torch

GROUPED = {"h.0.q_proj": (24, 24), "h.0.v_proj": (8, 24)}
"""(out, in) as with 3 query heads to a key/value head: v is no square."""


def lora_names(layer):
    if "embed" in layer:
        return f"{layer}.lora_embedding_A", f"{layer}.lora_embedding_B"
    return f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"


@pytest.fixture
def make_state():
    """Factory of a random fp32 state of one rank."""

    def make(rank, seed=0, shapes=GROUPED):
        draw = torch.Generator().manual_seed(seed)
        state = {}
        for layer, (rows, columns) in shapes.items():
            a, b = lora_names(layer)
            state[b] = torch.randn(rows, rank, generator=draw)
            state[a] = torch.randn(rank, columns, generator=draw)
        return state

    return make


@pytest.fixture
def make_clients(make_state):
    """Factory of a department from {client: rank}."""

    def make(ranks, seed=0, shapes=GROUPED):
        return {name: make_state(rank, 100 * seed + i, shapes) for i, (name, rank) in enumerate(ranks.items())}

    return make


@pytest.fixture
def dense():
    """s B A of each layer of a state as a dense fp64 matrix."""

    def product(state, scale=1.0):
        layers = sorted({name.split(".lora_")[0] for name in state})
        pairs = {layer: lora_names(layer) for layer in layers}
        return {layer: scale * state[b].double() @ state[a].double() for layer, (a, b) in pairs.items()}

    return product


@pytest.fixture
def dense_mean(dense):
    """Σ w s B A of each layer as a dense fp64 matrix."""

    def mean(clients, weights, scales=1.0):
        total = sum(weights.values())
        each = scales if isinstance(scales, dict) else dict.fromkeys(clients, scales)
        products = [(weights[name] / total, dense(clients[name], each[name])) for name in clients]
        return {layer: sum(w * p[layer] for w, p in products) for layer in products[0][1]}

    return mean


@pytest.fixture
def two_by_two():
    """Factory of a state of one layer ``q`` from nested lists."""

    def make(b, a):
        return {"q.lora_A.weight": torch.tensor(a), "q.lora_B.weight": torch.tensor(b)}

    return make


@pytest.fixture
def far():
    """‖x − y‖_F / ‖y‖_F."""

    def distance(x, y):
        return ((x.double() - y).norm() / y.norm()).item()

    return distance
