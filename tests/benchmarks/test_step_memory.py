"""What doctor predicts of a step is what the operations of that step take, for the shape of Qwen1.5-1.8B."""

import pytest
import torch

from benchmarks.systems.step_memory import META, LiveBytes, measure


def test_bytes_count_while_they_live_and_weights_do_not():
    weight = torch.empty(100, device=META)
    with LiveBytes([weight]) as live:
        first = weight.t() + 1
        second = first.view(10, 10) * 2
        del first
        third = second + second
    assert live.peak == 2 * 400
    assert live.now == 2 * 400
    del second, third
    assert live.now == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_prediction_is_within_an_eighth(recompute):
    row = measure(4096, layers=4, recompute=recompute)
    assert 0.95 < row["ratio"] < 1.125, row
