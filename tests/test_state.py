import math

import pytest
import torch

from fl_lightning.state import (
    check_same_layout,
    distance,
    flatten,
    is_lora_a,
    is_lora_b,
    joined_copy,
    norm,
    num_bytes,
    problem_with,
    select,
    snapshot,
)

A, B = "layers.0.q_proj.lora_A.weight", "layers.0.q_proj.lora_B.weight"


def state(a=0.0, b=0.0):
    return {A: torch.full((2, 3), a), B: torch.full((5, 2), b)}


def test_factors_are_told_by_name_not_by_shape():
    square = {"x.lora_A.weight": torch.zeros(2, 2), "x.lora_B.weight": torch.ones(2, 2)}
    assert list(select(square, "a")) == ["x.lora_A.weight"]
    assert list(select(square, "b")) == ["x.lora_B.weight"]


def test_embedding_factors_count():
    assert is_lora_a("embed.lora_embedding_A")
    assert is_lora_b("embed.lora_embedding_B")
    assert not is_lora_a("embed.lora_embedding_B")
    assert not is_lora_b("embed.lora_embedding_A")


def test_other_tensors_belong_to_no_factor():
    extra = {**state(), "lm_head.weight": torch.zeros(1)}
    assert set(select(extra, "all")) == {A, B}


def test_select_does_not_copy():
    own = state()
    assert select(own, "a")[A] is own[A]


def test_select_refuses_another_factor():
    with pytest.raises(ValueError, match=r"factor: expected one of a, b, all, none, got 'c'"):
        select(state(), "c")


def test_snapshot_by_one_copy_is_the_same_as_by_one_for_each_tensor(monkeypatch):
    draws = torch.Generator().manual_seed(0)
    live = {
        "b": torch.randn(4, 3, generator=draws).T,
        "a": torch.randn(2, generator=draws, dtype=torch.float64).bfloat16(),
    }
    copies, original = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(1) or original(self))
    joined, single = joined_copy(live), snapshot(live)
    assert copies == [1]
    assert list(joined) == list(single) == ["a", "b"]
    for name, tensor in single.items():
        assert torch.equal(joined[name], tensor)
        assert joined[name].dtype == torch.float32
        assert joined[name].untyped_storage().nbytes() == 4 * tensor.numel()


def test_snapshot_shares_no_memory_with_live_parameters():
    live = {A: torch.nn.Parameter(torch.ones(2, 3))}
    copy = snapshot(live)
    with torch.no_grad():
        live[A].mul_(7)
    assert torch.equal(copy[A], torch.ones(2, 3))
    assert not copy[A].requires_grad


def test_snapshot_is_contiguous_fp32_in_sorted_order():
    copy = snapshot({B: torch.ones(2, 5, dtype=torch.bfloat16).T, A: torch.ones(2, 3, dtype=torch.float64)})
    assert list(copy) == [A, B]
    assert {t.dtype for t in copy.values()} == {torch.float32}
    assert copy[B].is_contiguous()


def test_bytes_are_counted_at_the_tensors_own_width():
    # 2·3 elements of 2 bytes and 5·2 elements of 4 bytes: 12 + 40.
    assert num_bytes({A: torch.zeros(2, 3, dtype=torch.bfloat16), B: torch.zeros(5, 2)}) == 52


def test_flatten_goes_by_sorted_name_in_fp64():
    flat = flatten({"b": torch.tensor([3.0, 4.0]), "a": torch.tensor([[1.0], [2.0]])})
    assert flat.dtype == torch.float64
    assert flat.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_flatten_of_nothing_is_empty():
    assert flatten({}).shape == (0,)


def test_norm_runs_over_all_tensors():
    # √(3² + 4² + 12²) = 13
    assert norm({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([12.0])}) == 13.0


def test_norm_does_not_overflow_fp32():
    # 1e30² overflows fp32; √2 · 1e30 does not overflow fp64.
    assert norm({"a": torch.tensor([1e30, 1e30])}) == pytest.approx(math.sqrt(2) * 1e30, rel=1e-6)


def test_distance_takes_the_tensors_that_both_name():
    # Over A only: six elements that differ by 2 → √(6 · 4) = √24.
    assert distance(state(a=3.0, b=9.0), {A: torch.full((2, 3), 1.0)}) == pytest.approx(math.sqrt(24))


def test_a_good_update_has_no_problem():
    assert problem_with(state(1.0, 2.0), state()) is None


def test_a_half_precision_update_has_no_problem():
    assert problem_with({n: t.bfloat16() for n, t in state(1.0, 2.0).items()}, state()) is None


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({A: torch.zeros(2, 3)}, "1 tensors missing, first " + B),
        ({**state(), "x.lora_A": torch.zeros(1)}, "1 unknown tensors, first x.lora_A"),
        ({**state(), A: torch.zeros(3, 2)}, A + ": expected shape (2, 3), got (3, 2)"),
        (
            {**state(), A: torch.zeros(2, 3, dtype=torch.int64)},
            A + ": expected floating point of 16 to 64 bits, got torch.int64",
        ),
        ({**state(), A: torch.tensor([[0, 0, 0], [0, math.nan, 0.0]])}, A + ": not finite"),
        ({**state(), B: torch.full((5, 2), math.inf)}, B + ": not finite"),
    ],
    ids=["missing", "unknown", "shape", "dtype", "nan", "inf"],
)
def test_a_bad_update_is_described(update, said):
    assert problem_with(update, state()).startswith(said)


def test_equal_layouts_pass_whatever_the_order_of_names():
    check_same_layout([state(), dict(reversed(state(1.0).items())), state(2.0)])


def test_a_state_of_other_names_is_refused_by_its_index():
    with pytest.raises(
        ValueError, match=r"state 2: expected the names of state 0, got .*lora_B\.weight in one of them only"
    ):
        check_same_layout([state(), state(), {A: torch.zeros(2, 3)}])


def test_a_state_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"state 1: .*lora_A\.weight: expected shape \(2, 3\), got \(3, 2\)"):
        check_same_layout([state(), {**state(), A: torch.zeros(3, 2)}])
