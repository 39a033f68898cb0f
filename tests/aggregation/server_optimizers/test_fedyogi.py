import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.server_optimizers.adaptive import fedadam, fedyogi

A = "q.lora_A.weight"


def one(value):
    return {A: torch.tensor([value], dtype=torch.float64)}


def test_three_steps_by_hand():
    # β1 = 0.5, β2 = 0.75, τ = 1, η = 1; m = 0, v = 1, θ = 0:
    # Δ = 4: v < 16: v = 1 + 0.25 · 16 = 5;     m = 2;              θ = 2 / (√5 + 1) = 0.618034
    # Δ = 1: v > 1:  v = 5 − 0.25 = 4.75;       m = 1 + 0.5 = 1.5;  θ += 1.5 / (√4.75 + 1) = 0.471780
    # Δ = 0: v = 4.75;                          m = 0.75;           θ += 0.75 / (√4.75 + 1) = 0.235890
    state, memory = one(0.0), {}
    for delta, m, v, theta in [(4.0, 2.0, 5.0, 0.618034), (1.0, 1.5, 4.75, 1.089814), (0.0, 0.75, 4.75, 1.325704)]:
        state, memory = fedyogi(state, one(delta), memory, rate=1.0, beta1=0.5, beta2=0.75, tau=1.0)
        assert memory["m"][A].item() == pytest.approx(m, rel=1e-6)
        assert memory["v"][A].item() == pytest.approx(v, rel=1e-6)
        assert state[A].item() == pytest.approx(theta, abs=2e-6)


def test_v_stays_where_it_equals_the_square():
    # v = τ² = 4 = Δ²: the sign is 0
    _, memory = fedyogi(one(0.0), one(2.0), {}, rate=1.0, beta2=0.5, tau=2.0)
    assert memory["v"][A].item() == 4.0


def test_after_a_large_residual_v_falls_slower_than_adams():
    # Δ = 10, then 1 five times, β2 = 0.9, τ = 1: Adam's v falls by a tenth of itself a round, Yogi's by 0.1 a round.
    v = {}
    for name, method in {"yogi": fedyogi, "adam": fedadam}.items():
        state, memory = one(0.0), {}
        for delta in (10.0, 1.0, 1.0, 1.0, 1.0, 1.0):
            state, memory = method(state, one(delta), memory, rate=0.1, beta2=0.9, tau=1.0)
        v[name] = memory["v"][A].item()
    assert v["yogi"] == pytest.approx(1 + 10 - 5 * 0.1, rel=1e-6)  # 10.5
    assert v["adam"] == pytest.approx(0.9**5 * 10.9 + (1 - 0.9**5), rel=1e-6)  # 6.8459


def test_the_same_v_as_adam_where_v_was_nothing():
    # v = 0: v − (1 − β2) Δ² sign(−Δ²) = (1 − β2) Δ²
    start = {"m": {A: torch.zeros(1)}, "v": {A: torch.zeros(1)}}
    _, yogi = fedyogi(one(0.0), one(3.0), start, rate=0.1)
    _, adam = fedadam(one(0.0), one(3.0), start, rate=0.1)
    assert yogi["v"][A].item() == adam["v"][A].item() == pytest.approx(0.09, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), st.floats(0, 0.999))
def test_v_is_never_negative_and_never_beyond_what_came(deltas, beta2):
    state, memory = one(0.0), {}
    for delta in deltas:
        state, memory = fedyogi(state, one(delta), memory, rate=0.1, beta2=beta2, tau=0.5)
        assert memory["v"][A].item() >= 0
    assert memory["v"][A].item() <= 0.25 + (1 - beta2) * sum(d * d for d in deltas) * (1 + 1e-6) + 1e-6
