import pytest
import torch

from fl_lightning.mixing import mix_with_cluster_average

A, B = "q.lora_A.weight", "q.lora_B.weight"


def state(a, b):
    return {A: torch.tensor([a]), B: torch.tensor([b])}


def test_a_only_leaves_b_department_specific():
    # A: 0.7·1 + 0.3·11 = 4; B stays 5
    mixed = mix_with_cluster_average(state(1.0, 5.0), state(11.0, 100.0), 0.3)
    assert mixed[A].item() == pytest.approx(4.0, rel=1e-7)
    assert mixed[B].item() == 5.0


def test_mix_all_mixes_both():
    # A: 0.7·1 + 0.3·11 = 4; B: 0.7·5 + 0.3·105 = 35
    mixed = mix_with_cluster_average(state(1.0, 5.0), state(11.0, 105.0), 0.3, mix="all")
    assert mixed[A].item() == pytest.approx(4.0, rel=1e-7)
    assert mixed[B].item() == pytest.approx(35.0, rel=1e-7)


def test_the_default_ratio_is_three_tenths_of_a():
    # 0 + 0.3·(10 − 0) = 3
    mixed = mix_with_cluster_average(state(0.0, 1.0), state(10.0, 2.0))
    assert (mixed[A].item(), mixed[B].item()) == (pytest.approx(3.0, rel=1e-6), 1.0)


def test_ratio_zero_keeps_the_state_and_one_takes_the_cluster():
    own, cluster = state(0.1, 0.2), state(0.7, 0.9)
    assert mix_with_cluster_average(own, cluster, 0.0, mix="all")[A].item() == own[A].item()
    taken = mix_with_cluster_average(own, cluster, 1.0, mix="all")
    assert (taken[A].item(), taken[B].item()) == (cluster[A].item(), cluster[B].item())


def test_a_department_alone_in_its_cluster_stays_bit_for_bit():
    own = {A: torch.randn(3, 5, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(mix_with_cluster_average(own, own, 0.3)[A], own[A])


def test_mixing_returns_a_new_fp32_state():
    own, cluster = {A: torch.ones(2, dtype=torch.bfloat16)}, {A: torch.zeros(2)}
    mixed = mix_with_cluster_average(own, cluster, 0.5)
    assert mixed[A].dtype == torch.float32
    mixed[A].fill_(9.0)
    assert own[A].tolist() == [1.0, 1.0]
    assert cluster[A].tolist() == [0.0, 0.0]


def test_b_of_a_only_mixing_shares_no_memory_with_the_old_state():
    own = state(1.0, 5.0)
    mix_with_cluster_average(own, state(2.0, 6.0))[B].fill_(9.0)
    assert own[B].item() == 5.0


def test_a_only_does_not_need_b_in_the_cluster_state():
    mixed = mix_with_cluster_average(state(1.0, 5.0), {A: torch.tensor([3.0])}, 0.5)
    assert (mixed[A].item(), mixed[B].item()) == (2.0, 5.0)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=rf"mixing_ratio: expected a number in \[0, 1\], got {ratio}"):
        mix_with_cluster_average(state(1.0, 1.0), state(1.0, 1.0), ratio)


def test_an_unknown_mix_is_refused():
    with pytest.raises(ValueError, match="mix: expected 'a' or 'all', got 'b'"):
        mix_with_cluster_average(state(1.0, 1.0), state(1.0, 1.0), mix="b")


def test_a_cluster_state_without_the_factor_is_refused():
    with pytest.raises(ValueError, match=r"q\.lora_B\.weight: expected shape .* in the cluster state, got none"):
        mix_with_cluster_average(state(1.0, 1.0), {A: torch.ones(1)}, mix="all")


def test_a_cluster_state_of_another_shape_is_refused_even_where_it_would_broadcast():
    with pytest.raises(ValueError, match=r"q\.lora_A\.weight: .*shape \(3,\)"):
        mix_with_cluster_average({A: torch.ones(3)}, {A: torch.ones(1)})
