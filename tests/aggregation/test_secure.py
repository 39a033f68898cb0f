"""A department's step from a masked sum, against the same step from single updates."""

import dataclasses

import pytest
import torch

from fl_lightning import InputError
from fl_lightning.aggregation.department import aggregate_department
from fl_lightning.aggregation.secure import aggregate_securely, check_departments, clients_needed, problem_with_input
from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.config import (
    FederationConfig,
    FloraConfig,
    GuardConfig,
    MaskingConfig,
    PrivacyConfig,
    ServerConfig,
)
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError

SHAPES = {"q.lora_A": (8, 256), "q.lora_B": (256, 8), "v.lora_A": (8, 256), "v.lora_B": (128, 8)}
"""Grouped queries: the values have half as many outputs as the queries."""


def draw(clients, seed=0):
    generator = torch.Generator().manual_seed(seed)
    previous = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    updates = {
        f"hr/{i}": {n: t + 5e-3 * torch.randn(t.shape, generator=generator) for n, t in previous.items()}
        for i in range(clients)
    }
    stats = {c: ClientStats(20 + 7 * i, 900 + i) for i, c in enumerate(updates)}
    return previous, updates, stats


def both(config, clients=5, optimizer_state=None, round_num=1):
    previous, updates, stats = draw(clients)
    state = optimizer_state or {}
    plain = aggregate_department(config, round_num, previous, updates, stats, state)
    masked = aggregate_securely(
        config, round_num, previous, updates, stats, state, department="hr", asked=clients, seed=7
    )
    return plain, masked


CONFIGS = {
    "flora": FederationConfig(),
    "whole step": FederationConfig(flora=FloraConfig(momentum=1.0)),
    "fedavg": FederationConfig(combiner="fedavg"),
    "uniform": FederationConfig(weighting="uniform", flora=FloraConfig(momentum=1.0)),
    "tokens": FederationConfig(weighting="tokens", flora=FloraConfig(momentum=1.0)),
    "momentum": FederationConfig(server=ServerConfig(step="fedavgm")),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_equals_plain_averaging_within_the_stated_error(config):
    plain, masked = both(config)
    assert masked.masked.error < 1e-6
    for name, tensor in plain.state.items():
        # Of the mean; a server step is at most as long. fp32 adds half a unit in the last place of values below 1.
        torch.testing.assert_close(masked.state[name], tensor, rtol=0, atol=masked.masked.error + 2**-24)
    assert (masked.step_size, masked.weights, masked.rejected) == (plain.step_size, {}, {})
    assert list(masked.state) == list(plain.state)


def test_the_error_is_that_of_the_quantization_alone():
    config = dataclasses.replace(CONFIGS["fedavg"], masking=MaskingConfig(bound=200.0, max_weight=1024))
    plain, masked = both(config)
    worst = max((masked.state[n] - t).abs().max().item() for n, t in plain.state.items())
    assert 0.1 * masked.masked.error < worst <= masked.masked.error + 2**-24


def test_the_server_knows_the_sum_of_the_weights_and_no_more():
    _, masked = both(CONFIGS["flora"])
    assert masked.masked.weight == sum(20 + 7 * i for i in range(5))
    assert both(CONFIGS["uniform"])[1].masked.weight == 5


def test_the_adaptive_step_goes_on_from_its_moments():
    config = FederationConfig(server=ServerConfig(step="fedadam"), flora=FloraConfig(momentum=0.01))
    plain, masked = both(config)
    assert masked.optimizer_state.keys() == plain.optimizer_state.keys()
    again, again_masked = both(config, optimizer_state=plain.optimizer_state, round_num=2)
    for name, tensor in again.state.items():
        torch.testing.assert_close(again_masked.state[name], tensor, rtol=0, atol=1e-6)


def test_the_same_round_has_the_same_bytes_and_secrets_do_not_show():
    previous, updates, stats = draw(4)
    steps = [
        aggregate_securely(CONFIGS["flora"], 1, previous, updates, stats, {}, department=name, asked=4, seed=seed)
        for name, seed in (("hr", 7), ("hr", 7), ("hr", 8), ("it", 7))
    ]
    for step in steps[1:]:
        assert all(torch.equal(step.state[name], tensor) for name, tensor in steps[0].state.items())


def test_clients_that_sent_nothing_count_for_the_threshold():
    previous, updates, stats = draw(4)
    options = {"department": "hr", "seed": 7}
    step = aggregate_securely(CONFIGS["flora"], 1, previous, updates, stats, {}, asked=5, **options)
    assert step.masked.clients == sorted(updates)
    with pytest.raises(SecureAggregationError, match="expected at least 5 clients"):
        aggregate_securely(CONFIGS["flora"], 1, previous, updates, stats, {}, asked=6, **options)


def test_clients_needed():
    assert [clients_needed(FederationConfig(), asked) for asked in (2, 3, 4, 6, 16)] == [3, 3, 3, 5, 11]
    config = FederationConfig(masking=MaskingConfig(min_clients=4, threshold=0.5))
    assert [clients_needed(config, asked) for asked in (4, 6, 16)] == [4, 4, 9]


def test_a_client_that_does_not_fit_says_so_itself():
    config = FederationConfig(masking=MaskingConfig(bound=0.5, max_weight=100))
    start = {"w.lora_A": torch.zeros(3)}
    fits, too_large = {"w.lora_A": torch.full((3,), 0.5)}, {"w.lora_A": torch.tensor([0.0, -0.6, 0.0])}
    assert problem_with_input(config, fits, start, ClientStats(100, 0)) is None
    assert "federation.masking.bound), got 0.6" in problem_with_input(config, too_large, start, ClientStats(100, 0))
    assert "federation.masking.max_weight), got 101" in problem_with_input(config, fits, start, ClientStats(101, 0))
    tokens = dataclasses.replace(config, weighting="tokens")
    assert "expected 1 to 100" in problem_with_input(tokens, fits, start, ClientStats(5, 0))


def test_the_sum_of_clipped_updates_has_the_noise_of_the_clients_and_the_key_determines_it():
    from fl_lightning.aggregation.secure import round_terms
    from fl_lightning.privacy.secure_aggregation.noise_shares import noise_share, plan_noise
    from fl_lightning.privacy.secure_aggregation.randomness import seeded_random

    previous, updates, stats = draw(4)
    config = FederationConfig(
        guard=GuardConfig("dp"), weighting="uniform", combiner="fedavg", privacy=PrivacyConfig(clip=0.3)
    )

    def step(key, given=updates):
        return aggregate_securely(
            config, 1, previous, given, stats, {}, department="hr", asked=4, seed=7, noise_key=key
        )

    first, again, other = step("5e" * 32), step("5e" * 32), step("5f" * 32)
    assert all(torch.equal(first.state[name], again.state[name]) for name in SHAPES)
    assert not torch.equal(first.state["q.lora_A"], other.state["q.lora_A"])
    assert (first.clip, first.weights, first.masked.weight) == (0.3, {}, 4)
    terms = round_terms(config, previous, run="seed 7", department="hr", round_num=1, invited=4)
    plan = plan_noise(terms)
    keys = {c: seeded_random(7, "hr", 1, c, "5e" * 32)("noise") for c in updates}
    noise = torch.from_numpy(sum(noise_share(key, plan, terms.size) for key in keys.values()) * plan.unit)
    clipped = 0
    for update in updates.values():
        change = torch.cat([(update[n] - previous[n]).double().flatten() for n in sorted(SHAPES)])
        clipped = clipped + change * min(1, 0.3 / change.norm().item())
    wanted = torch.cat([previous[n].double().flatten() for n in sorted(SHAPES)]) + (clipped + noise) / 4
    got = torch.cat([first.state[n].flatten() for n in sorted(SHAPES)])
    torch.testing.assert_close(got, wanted.float(), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="noise_key: expected a secret under differential privacy, got none"):
        step("")


def test_under_differential_privacy_every_update_fits():
    config = FederationConfig(guard=GuardConfig("dp"), weighting="uniform", masking=MaskingConfig(bound=0.5))
    start, large = {"w.lora_A": torch.zeros(3)}, {"w.lora_A": torch.full((3,), 1e9)}
    assert problem_with_input(config, large, start, ClientStats(10**6, 0)) is None


def test_too_many_clients_for_too_little_noise_are_refused():
    privacy = PrivacyConfig(noise_multiplier=1e-7)
    config = FederationConfig(secure_aggregation=True, guard=GuardConfig("dp"), weighting="uniform", privacy=privacy)
    with pytest.raises(
        InputError, match=r"federation.privacy, hr: noise_multiplier: expected noise of at least 64 units"
    ):
        check_departments(config, [f"hr/{i}" for i in range(8)], lambda count: count)


def test_departments_with_too_few_clients_are_refused():
    clients = ["hr/a", "hr/b", "hr/c", "it/a", "it/b", "it/c", "it/d"]
    config = FederationConfig(secure_aggregation=True)
    check_departments(config, clients, lambda count: count)
    check_departments(FederationConfig(), clients, lambda count: 1)
    with pytest.raises(InputError, match=r"at least 3 clients of each department .*, got 2 of hr"):
        check_departments(config, clients, lambda count: min(count, 2))
