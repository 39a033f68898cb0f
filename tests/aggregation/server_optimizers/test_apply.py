import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.server_optimizers import SERVER_STEPS
from fl_lightning.storage.tensors import read_state, write_state

A, B = "q.lora_A.weight", "q.lora_B.weight"
REMEMBERS = {"sgd": set(), "fedavgm": {"m"}, "fedadam": {"m", "v"}, "fedyogi": {"m", "v"}, "fedadagrad": {"m", "v"}}
EVERY = pytest.mark.parametrize("name", SERVER_STEPS)
WITH_MEMORY = pytest.mark.parametrize("name", [n for n in SERVER_STEPS if REMEMBERS[n]])


def random_state(seed, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return {A: scale * torch.randn(4, 7, generator=draw), B: scale * torch.randn(9, 4, generator=draw)}


def copy_of(states):
    return {letter: {n: t.clone() for n, t in state.items()} for letter, state in states.items()}


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@EVERY
def test_every_method_remembers_its_letters_in_fp32(name):
    state, memory = SERVER_STEPS[name](random_state(0), random_state(1, 0.1), {}, rate=0.1)
    assert memory.keys() == REMEMBERS[name]
    for kept in (state, *memory.values()):
        assert {n: t.dtype for n, t in kept.items()} == {A: torch.float32, B: torch.float32}


@EVERY
def test_a_run_through_files_ends_in_the_same_bits(name, tmp_path):
    step = SERVER_STEPS[name]
    straight, stopped = (random_state(0), {}), (random_state(0), {})
    for t in range(1, 6):
        residual = {n: d.double() / 3 for n, d in random_state(t, 10.0**-t).items()}
        straight = step(straight[0], residual, straight[1], rate=0.1)
        stopped = step(stopped[0], residual, stopped[1], rate=0.1)
        for letter, kept in {"theta": stopped[0], **stopped[1]}.items():
            write_state(tmp_path / f"{t}" / f"{letter}.safetensors", kept)
        read = {p.stem: read_state(p) for p in sorted((tmp_path / f"{t}").iterdir())}
        stopped = (read.pop("theta"), read)
    assert same_bits(straight[0], stopped[0])
    assert straight[1].keys() == stopped[1].keys()
    assert all(same_bits(straight[1][letter], stopped[1][letter]) for letter in straight[1])


@EVERY
def test_what_the_residual_does_not_name_stays(name):
    step = SERVER_STEPS[name]
    start = random_state(0)
    state, memory = step(start, random_state(1, 0.1), {}, rate=0.1)
    after, kept = step(state, {A: torch.ones(4, 7)}, memory, rate=0.1)
    assert list(after) == list(start)
    assert torch.equal(after[B], state[B])
    assert not torch.equal(after[A], state[A])
    for letter in memory:
        assert torch.equal(kept[letter][B], memory[letter][B])
        assert not torch.equal(kept[letter][A], memory[letter][A])


@WITH_MEMORY
def test_factors_that_take_turns_are_as_if_each_was_alone(name):
    # A in rounds 1 and 3, B in round 2: A's second step must see the memory of its first, B's none.
    step = SERVER_STEPS[name]
    start, deltas = random_state(0), [random_state(t, 0.1) for t in (1, 2, 3)]
    state, memory = start, {}
    for names, delta in zip([A, B, A], deltas, strict=True):
        state, memory = step(state, {names: delta[names]}, memory, rate=0.1)
    alone, alone_memory = {A: start[A]}, {}
    for delta in (deltas[0], deltas[2]):
        alone, alone_memory = step(alone, {A: delta[A]}, alone_memory, rate=0.1)
    only, _ = step({B: start[B]}, {B: deltas[1][B]}, {}, rate=0.1)
    assert torch.equal(state[A], alone[A])
    assert torch.equal(state[B], only[B])
    assert all(torch.equal(memory[letter][A], alone_memory[letter][A]) for letter in memory)


@WITH_MEMORY
def test_memory_of_tensors_that_are_not_there_this_round_is_kept(name):
    # The caller may hand over the shared factor alone, as `select` gives it.
    step = SERVER_STEPS[name]
    _, memory = step(random_state(0), random_state(1), {}, rate=0.1)
    state, kept = step({A: torch.zeros(4, 7)}, {A: torch.ones(4, 7)}, memory, rate=0.1)
    assert set(state) == {A}
    assert all(torch.equal(kept[letter][B], memory[letter][B]) for letter in memory)


@EVERY
def test_nothing_given_is_changed_and_nothing_is_shared(name):
    step = SERVER_STEPS[name]
    start, residual = random_state(0), {A: torch.ones(4, 7)}
    _, memory = step(start, random_state(1), {}, rate=0.1)
    before = copy_of({"theta": start, "delta": residual, **memory})
    state, kept = step(start, residual, memory, rate=0.1)
    for result in (state, *kept.values()):
        for tensor in result.values():
            tensor.fill_(7.0)
    assert all(same_bits(before[k], now) for k, now in {"theta": start, "delta": residual, **memory}.items())


@EVERY
def test_half_precision_comes_back_in_fp32(name):
    # bf16 has nothing between 256 and 258
    start, delta = {A: torch.tensor([256.0], dtype=torch.bfloat16)}, {A: torch.tensor([0.5], dtype=torch.bfloat16)}
    state, _ = SERVER_STEPS[name](start, delta, {}, rate=0.5)
    assert state[A].dtype == torch.float32
    assert 256.0 < state[A].item() < 257.0


@EVERY
def test_an_order_of_names_makes_no_difference(name):
    step, start, delta = SERVER_STEPS[name], random_state(0), random_state(1)
    one, _ = step(start, delta, {}, rate=0.1)
    other, _ = step(dict(reversed(start.items())), dict(reversed(delta.items())), {}, rate=0.1)
    assert same_bits(one, other)


@EVERY
def test_clients_that_did_not_move_leave_the_state_at_first(name):
    start = random_state(0)
    state, _ = SERVER_STEPS[name](start, {n: torch.zeros_like(t) for n, t in start.items()}, {}, rate=1.0)
    assert same_bits(state, start)


@EVERY
@settings(max_examples=30, deadline=None)
@given(deltas=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4), rate=st.floats(0, 2))
def test_opposite_residuals_give_opposite_steps(name, deltas, rate):
    # Every method is odd in Δ: from 0, −Δ leads to −θ, with the same v.
    step = SERVER_STEPS[name]
    ways = []
    for sign in (1, -1):
        state, memory = {A: torch.zeros(1)}, {}
        for delta in deltas:
            state, memory = step(state, {A: torch.tensor([sign * delta], dtype=torch.float64)}, memory, rate=rate)
        ways.append((state[A].item(), memory.get("v", {A: torch.zeros(1)})[A].item()))
    assert ways[0][0] == -ways[1][0]
    assert ways[0][1] == ways[1][1] >= 0


@EVERY
@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf])
def test_a_rate_out_of_range_is_refused(name, rate):
    with pytest.raises(ValueError, match=f"rate: expected a finite number of at least 0, got {rate}"):
        SERVER_STEPS[name]({A: torch.ones(1)}, {A: torch.ones(1)}, {}, rate=rate)


@EVERY
def test_an_unknown_tensor_is_refused(name):
    with pytest.raises(ValueError, match=r"residual: expected names of the previous state, got q\.lora_B\.weight"):
        SERVER_STEPS[name]({A: torch.ones(1)}, {B: torch.ones(1)}, {}, rate=0.1)


@EVERY
def test_a_residual_of_another_shape_is_refused_even_where_it_would_broadcast(name):
    with pytest.raises(ValueError, match=r"q\.lora_A\.weight: expected shape \(3,\) of the residual, got \(1,\)"):
        SERVER_STEPS[name]({A: torch.ones(3)}, {A: torch.ones(1)}, {}, rate=0.1)


@WITH_MEMORY
def test_memory_of_another_shape_is_refused(name):
    step = SERVER_STEPS[name]
    _, memory = step({A: torch.ones(1)}, {A: torch.ones(1)}, {}, rate=0.1)
    with pytest.raises(ValueError, match=r"q\.lora_A\.weight: expected shape \(3,\) of m, got \(1,\)"):
        step({A: torch.ones(3)}, {A: torch.ones(3)}, memory, rate=0.1)


@EVERY
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_a_residual_that_would_poison_the_memory_is_refused(name, value):
    with pytest.raises(ValueError, match=r"q\.lora_A\.weight: expected finite values of .* in fp32"):
        SERVER_STEPS[name]({A: torch.ones(1)}, {A: torch.tensor([value], dtype=torch.float64)}, {}, rate=0.1)


def test_memory_of_another_method_is_refused():
    memory = {"m": {A: torch.ones(1)}}
    with pytest.raises(ValueError, match=r"optimizer_state: expected \['m', 'v'\] or nothing, got \['m'\]"):
        SERVER_STEPS["fedadam"]({A: torch.ones(1)}, {A: torch.ones(1)}, memory, rate=0.1)


def test_half_a_memory_is_refused():
    memory = {"m": {A: torch.ones(1)}, "v": {}}
    with pytest.raises(
        ValueError, match=r"optimizer_state: expected q\.lora_A\.weight in all of .*, got it in \['m'\]"
    ):
        SERVER_STEPS["fedadam"]({A: torch.ones(1)}, {A: torch.ones(1)}, memory, rate=0.1)
