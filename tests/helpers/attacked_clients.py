"""A department of eight clients that learn nearly the same, and what hostile ones send in their place."""

from __future__ import annotations

import pytest
import torch

SHAPES = {"layer.q.lora_A.weight": (3, 10), "layer.q.lora_B.weight": (10, 3)}


def _state(vector):
    parts = vector.float().split([30, 30])
    return {name: part.reshape(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def _vectors(seed, spread):
    """Eight updates of 60 numbers: a common direction of length one, and about `spread` of one's own."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(60, generator=draw, dtype=torch.float64)
    own = torch.randn(8, 60, generator=draw, dtype=torch.float64) / 60**0.5
    return common / common.norm() + spread * own, draw


@pytest.fixture
def department():
    """department(seed, spread) → residuals of hr/a … hr/h."""

    def build(seed=0, spread=0.5):
        vectors, _ = _vectors(seed, spread)
        return {f"hr/{letter}": _state(vector) for letter, vector in zip("abcdefgh", vectors, strict=True)}

    return build


@pytest.fixture
def attacked():
    """attacked(attack, count, seed) → (residuals, ids of the attackers, mean of the honest)."""

    def build(attack, count, seed=0):
        vectors, draw = _vectors(seed, 0.5)
        hostile = list(range(8))[2 : 2 + count]
        honest = [i for i in range(8) if i not in hostile]
        for i in hostile:
            noise = torch.randn(60, generator=draw, dtype=torch.float64)
            vectors[i] = {
                "negated ten times": -10 * vectors[i],
                "noise of ten times the norm": 10 * vectors[i].norm() * noise / noise.norm(),
                "copy of another negated": -vectors[honest[0]],
                "1e30 times": 1e30 * vectors[i],
            }[attack]
        ids = [f"hr/{letter}" for letter in "abcdefgh"]
        residuals = {c: _state(vector) for c, vector in zip(ids, vectors, strict=True)}
        return residuals, {ids[i] for i in hostile}, _state(vectors[honest].mean(dim=0))

    return build


class Counting(dict):
    """A state that counts how often each tensor is asked for."""

    def __init__(self, state):
        super().__init__(state)
        self.reads = dict.fromkeys(state, 0)

    def __getitem__(self, name):
        self.reads[name] += 1
        return super().__getitem__(name)

    def values(self):
        return [self[name] for name in self]

    def items(self):
        return [(name, self[name]) for name in self]


@pytest.fixture
def counting():
    """counting(state) → the state, with `reads`."""
    return Counting
