import pytest
import torch

from fl_lightning.aggregation.server_optimizers import SERVER_STEPS, make_server_step, options_of
from fl_lightning.errors import InputError

A = "q.lora_A.weight"


def test_the_methods_and_their_options():
    known = {
        "sgd": {},
        "fedavgm": {"beta1": 0.9},
        "fedadam": {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
        "fedyogi": {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
        "fedadagrad": {"decay": 0.0, "tau": 1e-3},
    }
    assert {name: options_of(name) for name in known} == known


@pytest.mark.parametrize("name", SERVER_STEPS)
def test_a_made_step_is_the_method(name):
    start, delta = {A: torch.tensor([1.0])}, {A: torch.tensor([0.5])}
    assert make_server_step(name)(start, delta, {}, rate=0.1) == SERVER_STEPS[name](start, delta, {}, rate=0.1)


def test_options_reach_the_method():
    # m: 1, 0.5·1 + 1 = 1.5; θ: 1, 2.5
    step, state, memory = make_server_step("fedavgm", beta1=0.5), {A: torch.tensor([0.0])}, {}
    for _ in range(2):
        state, memory = step(state, {A: torch.tensor([1.0])}, memory, rate=1.0)
    assert state[A].item() == 2.5


def test_an_unknown_method_is_refused_with_the_nearest():
    wanted = "server step: expected one of sgd, .*, got 'fedadm'; did you mean 'fedadam'?"
    with pytest.raises(InputError, match=wanted):
        make_server_step("fedadm")


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="fedadam: expected beta1, beta2, tau, got option 'beta'; did you mean 'beta"):
        make_server_step("fedadam", beta=0.9)


def test_an_option_of_a_method_without_any_is_refused():
    with pytest.raises(InputError, match="sgd: expected no options, got option 'beta'"):
        make_server_step("sgd", beta=0.9)


def test_the_rate_is_no_option():
    with pytest.raises(InputError, match="fedavgm: expected beta1, got option 'rate'"):
        make_server_step("fedavgm", rate=0.1)


@pytest.mark.parametrize(
    ("name", "option", "value", "wanted"),
    [
        ("fedavgm", "beta1", 1.0, r"a number in \[0, 1\)"),
        ("fedadam", "beta1", -0.1, r"a number in \[0, 1\)"),
        ("fedadam", "beta2", float("nan"), r"a number in \[0, 1\)"),
        ("fedyogi", "beta2", 1.5, r"a number in \[0, 1\)"),
        ("fedadagrad", "tau", 0.0, "a positive finite number"),
        ("fedyogi", "tau", float("inf"), "a positive finite number"),
        ("fedadam", "tau", "small", "a number"),
        ("fedavgm", "beta1", True, "a number"),
    ],
)
def test_an_option_out_of_range_is_refused_when_it_is_set(name, option, value, wanted):
    with pytest.raises(InputError, match=f"{name}: {option}: expected {wanted}, got {value!r}"):
        make_server_step(name, **{option: value})
