import pytest
import torch

from fl_lightning.aggregation.server_optimizers.adaptive import fedadagrad

A = "q.lora_A.weight"


def one(value):
    return {A: torch.tensor([value], dtype=torch.float64)}


def test_three_steps_by_hand():
    # τ = 3, η = 1, v = 9, θ = 0, β1 = 0:
    # Δ = 4:  v = 25;  θ = 4 / (5 + 3) = 0.5
    # Δ = 12: v = 169; θ = 0.5 + 12 / (13 + 3) = 1.25
    # Δ = 0:  v = 169; θ = 1.25
    state, memory = one(0.0), {}
    for delta, v, theta in [(4.0, 25.0, 0.5), (12.0, 169.0, 1.25), (0.0, 169.0, 1.25)]:
        state, memory = fedadagrad(state, one(delta), memory, rate=1.0, tau=3.0)
        assert memory["m"][A].item() == delta
        assert memory["v"][A].item() == v
        assert state[A].item() == theta


def test_with_a_first_moment_by_hand():
    # β1 = 0.5: Δ = 4: m = 2, θ = 2 / 8 = 0.25; Δ = 12: m = 1 + 6 = 7, θ = 0.25 + 7 / 16 = 0.6875
    state, memory = one(0.0), {}
    for delta, theta in [(4.0, 0.25), (12.0, 0.6875)]:
        state, memory = fedadagrad(state, one(delta), memory, rate=1.0, decay=0.5, tau=3.0)
        assert state[A].item() == theta


def test_the_same_as_torchs_adagrad():
    draw = torch.Generator().manual_seed(0)
    start, tau = torch.randn(5, 3, generator=draw), 1e-2
    weight = torch.nn.Parameter(start.double())
    optimizer = torch.optim.Adagrad([weight], lr=0.3, eps=tau, initial_accumulator_value=tau * tau)
    state, memory = {A: start}, {}
    for _ in range(6):
        delta = torch.randn(5, 3, generator=draw)
        weight.grad = -delta.double()
        optimizer.step()
        state, memory = fedadagrad(state, {A: delta}, memory, rate=0.3, tau=tau)
        torch.testing.assert_close(state[A].double(), weight.detach(), rtol=1e-5, atol=1e-6)


def test_equal_residuals_give_steps_that_shrink_like_one_over_root_t():
    # τ small: v = t, so that step t is η / √t
    state, memory = one(0.0), {}
    for t in range(1, 10):
        before = state[A].item()
        state, memory = fedadagrad(state, one(1.0), memory, rate=0.1, tau=1e-9)
        assert state[A].item() - before == pytest.approx(0.1 / t**0.5, rel=1e-5)
