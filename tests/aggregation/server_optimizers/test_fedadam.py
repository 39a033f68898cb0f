import math

import numpy as np
import pytest
import torch

from fl_lightning.aggregation.server_optimizers.adaptive import fedadam

A = "q.lora_A.weight"


def one(value):
    return {A: torch.tensor([value], dtype=torch.float64)}


def test_three_steps_by_hand():
    # β1 = 0.5, β2 = 0.75, τ = 1, η = 1; m = 0, v = 1, θ = 0:
    # Δ = 3:  m = 1.5;           v = 0.75 + 0.25 · 9 = 3;       θ = 1.5 / (√3 + 1) = 0.549038
    # Δ = −1: m = 0.75 − 0.5;    v = 2.25 + 0.25 = 2.5;         θ += 0.25 / (√2.5 + 1) = 0.096857
    # Δ = 0:  m = 0.125;         v = 1.875;                     θ += 0.125 / (√1.875 + 1) = 0.052758
    state, memory = one(0.0), {}
    rows = [(3.0, 1.5, 3.0, 0.549038), (-1.0, 0.25, 2.5, 0.645895), (0.0, 0.125, 1.875, 0.698653)]
    for delta, m, v, theta in rows:
        state, memory = fedadam(state, one(delta), memory, rate=1.0, beta1=0.5, beta2=0.75, tau=1.0)
        assert memory["m"][A].item() == pytest.approx(m, rel=1e-6)
        assert memory["v"][A].item() == pytest.approx(v, rel=1e-6)
        assert state[A].item() == pytest.approx(theta, abs=2e-6)


def test_the_square_of_the_residual_enters_v_and_not_that_of_m():
    # Δ = 2, −2 with β1 = 0.5, β2 = 0: m = 1, −0.5, but v = 4 both times; with m² it would be 1 and 0.25.
    state, memory = one(0.0), {}
    for delta in (2.0, -2.0):
        state, memory = fedadam(state, one(delta), memory, rate=1.0, beta1=0.5, beta2=0.0, tau=1.0)
        assert memory["v"][A].item() == 4.0
    assert memory["m"][A].item() == -0.5


def test_v_begins_at_tau_squared():
    # v = 0.99 · 1e-6 + 0.01 · 0, so √v + τ is about 2 τ and not τ in round 1
    _, memory = fedadam(one(0.0), one(0.0), {}, rate=0.1)
    assert memory["v"][A].item() == pytest.approx(0.99e-6, rel=1e-6)
    assert memory["m"][A].item() == 0.0


def test_the_defaults_are_those_of_the_paper():
    # m = 0.1 · 1, v = 0.99e-6 + 0.01, θ = 0.5 · 0.1 / (√v + 1e-3)
    state, memory = fedadam(one(0.0), one(1.0), {}, rate=0.5)
    v = 0.99 * 1e-6 + 0.01
    assert memory["v"][A].item() == pytest.approx(v, rel=1e-6)
    assert state[A].item() == pytest.approx(0.5 * 0.1 / (math.sqrt(v) + 1e-3), rel=1e-6)


def test_the_same_as_torchs_adam_without_its_bias_correction():
    # Adam's corrections 1 − β^t are 1 after so many steps that β^t is 0, and its v can be set to τ².
    draw = torch.Generator().manual_seed(0)
    start, tau = torch.randn(5, 3, generator=draw), 1e-2
    weight = torch.nn.Parameter(start.double())
    optimizer = torch.optim.Adam([weight], lr=0.3, betas=(0.8, 0.95), eps=tau)
    optimizer.state[weight] = {
        "step": torch.tensor(1e6, dtype=torch.float64),
        "exp_avg": torch.zeros(5, 3, dtype=torch.float64),
        "exp_avg_sq": torch.full((5, 3), tau * tau, dtype=torch.float64),
    }
    state, memory = {A: start}, {}
    for _ in range(6):
        delta = torch.randn(5, 3, generator=draw)
        weight.grad = -delta.double()
        optimizer.step()
        state, memory = fedadam(state, {A: delta}, memory, rate=0.3, beta1=0.8, beta2=0.95, tau=tau)
        torch.testing.assert_close(state[A].double(), weight.detach(), rtol=1e-5, atol=1e-6)


def test_a_numpy_reference_in_fp64_that_is_cast_once_a_round():
    draw = np.random.default_rng(0)
    theta = draw.normal(size=(4, 3)).astype(np.float32).astype(np.float64)
    state, memory = {A: torch.from_numpy(theta)}, {}
    m, v = np.zeros_like(theta), np.full_like(theta, 1e-6)
    for t in range(10):
        delta, rate = draw.normal(size=(4, 3)) * 0.01, 0.1 / (t + 1)
        m = 0.9 * m + 0.1 * delta
        v = 0.99 * v + 0.01 * delta**2
        theta = theta + rate * m / (np.sqrt(v) + 1e-3)
        theta, m, v = (x.astype(np.float32).astype(np.float64) for x in (theta, m, v))
        state, memory = fedadam(state, {A: torch.from_numpy(delta)}, memory, rate=rate)
        for got, wanted in ((state, theta), (memory["m"], m), (memory["v"], v)):
            np.testing.assert_allclose(got[A].numpy(), wanted, rtol=2.0**-23, atol=0)  # the last bit of fp32


def test_the_scale_of_the_residual_hardly_matters_above_tau():
    # m / √v is the same for Δ and 1000 Δ, once τ² is forgotten and τ is small beside √v
    moved = []
    for scale in (1.0, 1000.0):
        state, memory = one(0.0), {}
        for _ in range(20):
            state, memory = fedadam(state, one(scale), memory, rate=0.1, tau=1e-6)
        moved.append(state[A].item())
    assert moved[0] == pytest.approx(moved[1], rel=1e-4)
