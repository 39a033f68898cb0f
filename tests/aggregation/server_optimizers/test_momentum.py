import pytest
import torch

from fl_lightning.aggregation.server_optimizers.momentum import fedavgm
from fl_lightning.aggregation.server_optimizers.sgd import sgd

A = "q.lora_A.weight"


def one(value):
    return {A: torch.tensor([value], dtype=torch.float64)}


def test_three_steps_by_hand():
    # β = 0.9, η = 0.1, θ = 1:
    # Δ = 2:  m = 2;                  θ = 1 + 0.2 = 1.2
    # Δ = −1: m = 1.8 − 1 = 0.8;      θ = 1.2 + 0.08 = 1.28
    # Δ = 0:  m = 0.72;               θ = 1.28 + 0.072 = 1.352
    state, memory = one(1.0), {}
    for delta, m, theta in [(2.0, 2.0, 1.2), (-1.0, 0.8, 1.28), (0.0, 0.72, 1.352)]:
        state, memory = fedavgm(state, one(delta), memory, rate=0.1)
        assert memory["m"][A].item() == pytest.approx(m, rel=1e-6)
        assert state[A].item() == pytest.approx(theta, rel=1e-6)


def test_the_same_as_torchs_sgd_with_momentum():
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=draw)
    weight = torch.nn.Parameter(start.double())
    optimizer = torch.optim.SGD([weight], lr=0.3, momentum=0.8)
    state, memory = {A: start}, {}
    for _ in range(6):
        delta = torch.randn(5, 3, generator=draw)
        weight.grad = -delta.double()
        optimizer.step()
        state, memory = fedavgm(state, {A: delta}, memory, rate=0.3, beta1=0.8)
    torch.testing.assert_close(state[A].double(), weight.detach(), rtol=1e-5, atol=1e-6)


def test_beta_zero_is_sgd():
    state, memory = one(1.0), {}
    plain = one(1.0)
    for delta in (3.0, -2.0):
        state, memory = fedavgm(state, one(delta), memory, rate=0.3, beta1=0.0)
        plain, _ = sgd(plain, one(delta), {}, rate=0.3)
    assert torch.equal(state[A], plain[A])


def test_a_constant_residual_ends_in_steps_of_one_over_one_minus_beta():
    # m → 1 / (1 − 0.5) = 2; θ moves by 0.1 · 2 a round in the end
    state, memory = one(0.0), {}
    for _ in range(40):
        before = state[A].item()
        state, memory = fedavgm(state, one(1.0), memory, rate=0.1, beta1=0.5)
    assert memory["m"][A].item() == pytest.approx(2.0, rel=1e-6)
    assert state[A].item() - before == pytest.approx(0.2, rel=1e-5)


def test_the_rate_of_a_round_is_not_remembered():
    # m is 1 after a round of rate 0: θ stays; then m = 0.5, θ = 0.5
    state, memory = fedavgm(one(0.0), one(1.0), {}, rate=0.0, beta1=0.5)
    assert state[A].item() == 0.0
    state, memory = fedavgm(state, one(0.0), memory, rate=1.0, beta1=0.5)
    assert state[A].item() == 0.5
