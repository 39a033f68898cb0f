import dataclasses

import pytest
import torch

from fl_lightning.federation.state import FederationState

A, B = "q.lora_A.weight", "q.lora_B.weight"


def state(a, b=0.0):
    return {A: torch.tensor([a]), B: torch.tensor([b])}


def begin():
    return FederationState.begin(state(1.0), ["it", "hr"])


def test_round_zero_gives_everybody_one_start():
    federation = begin()
    assert federation.round_num == 0
    assert list(federation.departments) == ["hr", "it"]
    for department in federation.departments.values():
        assert torch.equal(department[A], federation.initial[A])
        assert not department[B].any()


def test_departments_do_not_share_their_mapping():
    federation = begin()
    federation.departments["hr"][A] = torch.tensor([9.0])
    assert federation.departments["it"][A].item() == 1.0
    assert federation.initial[A].item() == 1.0


def test_a_start_whose_b_is_not_zero_is_refused():
    with pytest.raises(ValueError, match="expected a fresh adapter, whose lora_B is zero"):
        FederationState.begin(state(1.0, 0.5), ["hr"])


def test_a_start_whose_b_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="lora_B is not zero"):
        FederationState.begin(state(1.0, float("nan")), ["hr"])


def test_state_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        begin().round_num = 3


def test_a_client_starts_from_its_department():
    assert begin().start_of("hr/client_0")[A].item() == 1.0


def test_a_cluster_start_lies_over_the_department_and_own_b_over_both():
    federation = dataclasses.replace(
        begin(),
        client_starts={"hr/client_0": state(2.0, 20.0)},
        personal={"hr/client_0": {B: torch.tensor([300.0])}, "hr/client_1": {B: torch.tensor([400.0])}},
    )
    first, second, third = (federation.start_of(f"hr/client_{i}") for i in range(3))
    assert (first[A].item(), first[B].item()) == (2.0, 300.0)
    assert (second[A].item(), second[B].item()) == (1.0, 400.0)
    assert (third[A].item(), third[B].item()) == (1.0, 0.0)


def test_a_client_of_the_same_name_elsewhere_keeps_its_own_start():
    federation = dataclasses.replace(begin(), client_starts={"hr/client_0": state(2.0)})
    assert federation.start_of("it/client_0")[A].item() == 1.0


def test_department_examples_add_up_over_clients():
    federation = dataclasses.replace(begin(), examples={"hr/client_0": 5, "hr/client_1": 7})
    assert federation.department_examples() == {"hr": 12, "it": 0}


def test_equal_layouts_pass_the_check():
    assert begin().check() is None


def test_a_department_of_another_shape_fails_the_check():
    broken = dataclasses.replace(begin(), departments={"hr": {A: torch.ones(2), B: torch.ones(1)}})
    with pytest.raises(ValueError, match=r"lora_A\.weight: expected shape \(1,\), got \(2,\)"):
        broken.check()


def test_a_department_without_a_tensor_fails_the_check():
    broken = dataclasses.replace(begin(), departments={"hr": {A: torch.ones(1)}})
    with pytest.raises(ValueError, match=r"expected the names of state 0, got .*lora_B\.weight"):
        broken.check()


def test_the_factor_that_a_client_keeps_is_not_its_own_adapter():
    federation = dataclasses.replace(begin(), personal={"hr/a": {B: torch.tensor([2.0])}, "hr/b": state(3.0, 4.0)})
    assert federation.final_own_adapter("hr/a") == federation.initial
    assert federation.final_own_adapter("hr/b") == federation.personal["hr/b"]
    own = dataclasses.replace(federation, own_adapters={"hr/a": state(5.0, 6.0)})
    assert own.final_own_adapter("hr/a") == own.own_adapters["hr/a"]
