"""What a site gives to others and takes from them, apart from messages."""

import pytest
import torch

from fl_lightning.config import FederationConfig, NetworkConfig, PersonalConfig, RunConfig
from fl_lightning.errors import InputError
from fl_lightning.federation.state import FederationState
from fl_lightning.network.site.lending import borrowed_adapters, lent_adapter

A, B = "q.lora_A.weight", "q.lora_B.weight"
INITIAL = {A: torch.ones(1, 2), B: torch.zeros(2, 1)}
OWN = {A: torch.full((1, 2), 2.0), B: torch.ones(2, 1)}
DEPARTMENT = {A: torch.full((1, 2), 3.0), B: torch.full((2, 1), 5.0)}


def config(mates="all", lend="all", **personal):
    return RunConfig(
        personal=PersonalConfig(own="during", mates=mates, **personal),
        network=NetworkConfig(lend=lend),
        federation=FederationConfig(max_update_norm=10.0),
    )


def borrow(lent, mates="all"):
    return borrowed_adapters(config(mates), "hr/a", lent, INITIAL, 2)


def test_what_is_lent_is_the_own_adapter_and_under_apfl_its_mixture():
    state = FederationState(2, INITIAL, {}, own_adapters={"hr/a": OWN})
    plain = lent_adapter(config(), state, "hr/a", DEPARTMENT)
    assert all(torch.equal(plain[name], OWN[name]) for name in OWN)
    mixed = lent_adapter(config(mates="off", apfl_alpha=0.75), state, "hr/a", DEPARTMENT)
    # 0.75 · [1 1]ᵀ[2 2] + 0.25 · [5 5]ᵀ[3 3] = 1.5 + 3.75
    assert torch.equal(mixed[B] @ mixed[A], torch.full((2, 2), 5.25))


def test_a_site_lends_only_if_its_config_says_so():
    state = FederationState(2, INITIAL, {}, own_adapters={"hr/a": OWN})
    with pytest.raises(ValueError, match="network.lend: expected department or all"):
        lent_adapter(config(lend="off"), state, "hr/a", DEPARTMENT)


def test_what_fits_is_borrowed_whatever_its_rank():
    joined = {A: torch.ones(3, 2), B: torch.ones(2, 3)}
    assert borrow({"hr/b": OWN, "it/c": joined}) == {"hr/b": OWN, "it/c": joined}


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        ({A: OWN[A]}, "expected the tensors of this model's adapter"),
        ({A: OWN[A], B: torch.ones(3, 1)}, "expected a product of shape"),
        ({A: OWN[A], B: OWN[B] * torch.nan}, "expected finite numbers"),
        ({A: OWN[A].double(), B: OWN[B]}, "expected float32"),
        # 2 rounds of at most 10 norms of the start (√2), and the start, twice
        ({A: OWN[A] * 1e3, B: OWN[B]}, "norm: expected at most 59.4, got 2.83e"),
    ],
)
def test_what_does_not_fit_is_left_out_with_a_reason(adapter, reason, log_messages):
    assert borrow({"hr/b": adapter, "it/c": OWN}) == {"it/c": OWN}
    assert any(f"hr/b lends is left out: {reason}" in message or reason in message for message in log_messages)


@pytest.mark.parametrize(("mates", "names"), [("off", ["hr/b"]), ("department", ["it/c"]), ("all", ["hr/a"])])
def test_what_the_site_has_not_asked_for_is_refused(mates, names):
    with pytest.raises(ValueError, match="personal.mates: expected own adapters that"):
        borrow(dict.fromkeys(names, OWN), mates)


@pytest.mark.parametrize("name", ["hr/../../x", "../x", "hr/..", "hr", 7, "hr/a b", "hr/" + "x" * 129])
def test_a_name_that_is_no_clients_is_refused(name):
    with pytest.raises(InputError, match="expected"):
        borrow({name: OWN})
