import pytest
import torch

from fl_lightning.aggregation.staleness import rebase, staleness_weight
from fl_lightning.flora import flora_weighted_aggregate


def test_a_step_of_fedbuff_with_numbers_worked_out_by_hand():
    # θ is 10. Client a started from it and moved by +4; client b started three steps ago, at 2, and moved by −6.
    # s(0) = 1, s(3) = 1/2, so the changes are +4 and −3; the mean by 1 and 3 records is (4 − 9) / 4 = −1.25.
    newest, a, b, start = ({"w.lora_A.weight": torch.tensor([x])} for x in (10.0, 14.0, -4.0, 2.0))
    late = rebase(b, start, newest, staleness_weight("polynomial", 3))
    assert late["w.lora_A.weight"].item() == 7.0
    step = flora_weighted_aggregate([(a, 1), (late, 3)], newest, 1.0)
    assert step["w.lora_A.weight"].item() == 8.75
    unweighted = rebase(b, start, newest, staleness_weight("constant", 3))
    assert flora_weighted_aggregate([(a, 1), (unweighted, 3)], newest, 1.0)["w.lora_A.weight"].item() == 6.5


@pytest.mark.parametrize(("age", "weight"), [(0, 1.0), (1, 0.5**0.5), (3, 0.5), (8, 1 / 3)])
def test_weights_fall_with_the_square_root_of_the_age(age, weight):
    assert staleness_weight("polynomial", age) == pytest.approx(weight, rel=1e-15)


def test_only_shared_tensors_are_rebased_and_stay_fp32():
    state = {"a": torch.tensor([1.0])}
    result = rebase(state, {"a": torch.tensor([0.5]), "b": torch.zeros(2)}, {"a": torch.tensor([2.0])}, 1.0)
    assert {name: (t.item(), t.dtype) for name, t in result.items()} == {"a": (2.5, torch.float32)}
