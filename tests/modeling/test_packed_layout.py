from __future__ import annotations

import pytest
import torch

from fl_lightning.modeling import packed_layout
from fl_lightning.modeling.attention import packed_kwargs, use_packed_attention
from fl_lightning.modeling.packed_layout import LengthGroups, PackedLayout, group_by_length, ungroup

LENGTHS = (70, 1, 33, 64, 2)


@pytest.fixture
def row():
    """(1, heads, T, head_dim), as models lay it out."""
    return torch.randn(1, sum(LENGTHS), 2, 4, dtype=torch.float64).transpose(1, 2).requires_grad_()


def test_groups_hold_sequences_of_similar_length(row):
    groups = LengthGroups.from_lengths(LENGTHS, row.device)
    assert groups.sizes == ((2, 70), (1, 33), (2, 2))
    first, second, third = group_by_length(row, groups)
    starts = [0, 70, 71, 104, 168]
    assert torch.equal(first[0], row[0, :, :70])
    assert torch.equal(first[1, :, :64], row[0, :, starts[3] : starts[4]])
    assert torch.equal(second[0], row[0, :, starts[2] : starts[3]])
    assert torch.equal(third[1, :, :1], row[0, :, starts[1] : starts[2]])


def test_grouping_and_back_is_the_identity_forward_and_backward(row):
    groups = LengthGroups.from_lengths(LENGTHS, row.device)
    tokens = ungroup(group_by_length(row, groups), groups)
    assert torch.equal(tokens, row.transpose(1, 2))
    weight = torch.randn_like(tokens)
    (gradient,) = torch.autograd.grad((tokens * weight).sum(), row)
    assert torch.equal(gradient, weight.transpose(1, 2))


def test_gradients_are_right(row):
    groups = LengthGroups.from_lengths((3, 1), row.device)
    short = row.detach()[:, :, :4].requires_grad_()
    # Padding repeats a token, and its output is dropped: the function of the tokens is what counts.
    assert torch.autograd.gradcheck(
        lambda x: ungroup([part.cumsum(2).square() for part in group_by_length(x, groups)], groups), (short,)
    )


def test_layout_is_made_once_for_all_layers(micro_qwen, monkeypatch):
    calls = []
    make = packed_layout.LengthGroups.from_lengths
    monkeypatch.setattr(packed_layout.LengthGroups, "from_lengths", lambda *args: calls.append(args) or make(*args))
    use_packed_attention(micro_qwen)
    ids = torch.arange(12)[None]
    layout = PackedLayout.from_lengths((5, 7), torch.device("cpu"))
    micro_qwen(input_ids=ids, position_ids=ids, use_cache=False, **packed_kwargs(layout))
    assert micro_qwen.config.num_hidden_layers > 1
    assert len(calls) == 1
