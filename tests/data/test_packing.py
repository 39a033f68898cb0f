from __future__ import annotations

import dataclasses

import pytest
import torch

from fl_lightning.data.packing import epoch_order, pack, pack_examples
from fl_lightning.data.tokenization import Example


def example(ids, first):
    return Example(torch.tensor(ids), torch.arange(len(ids)) >= first)


def test_rows_hold_all_tokens_in_client_order():
    batch = pack([[example([1, 2, 3], 1)], [example([4, 5], 1), example([6, 7, 8, 9], 3)]])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert batch.lengths == (3, 2, 4)
    assert batch.client_tokens == (3, 6)
    assert batch.num_tokens == 9


def test_positions_start_anew_in_every_sequence():
    batch = pack([[example([1, 2, 3], 1), example([4, 5], 1)]])
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]


def test_targets_are_supervised_tokens_and_keep_is_the_place_before_each():
    batch = pack([[example([1, 2, 3], 2)], [example([4, 5, 6], 1)]])
    assert batch.targets.tolist() == [3, 5, 6]
    assert batch.keep.tolist() == [1, 3, 4]
    assert batch.owners.tolist() == [0, 1, 1]
    assert batch.client_targets == (1, 2)


def test_client_without_sequences_has_no_tokens_and_no_targets():
    batch = pack([[], [example([1, 2], 1)], []])
    assert batch.client_tokens == (0, 2, 0)
    assert batch.client_targets == (0, 1, 0)
    assert batch.owners.tolist() == [1]


@pytest.mark.parametrize("clients", [[], [[]], [[], []]])
def test_row_without_any_example_is_refused(clients):
    with pytest.raises(ValueError, match="expected at least one"):
        pack(clients)


def test_every_target_is_predicted_from_inside_its_own_sequence(make_examples):
    batch = pack([make_examples(3, seed=1), make_examples(4, seed=2)])
    ends = torch.tensor(batch.lengths).cumsum(0)
    sequence_of_keep = torch.bucketize(batch.keep, ends, right=True)
    sequence_of_target = torch.bucketize(batch.keep + 1, ends, right=True)
    assert torch.equal(sequence_of_keep, sequence_of_target)


def test_pack_examples_is_a_row_of_a_single_client(make_examples):
    examples = make_examples(3)
    assert pack_examples(examples).client_tokens == (sum(map(len, examples)),)


def test_moving_to_a_device_keeps_every_field():
    batch = pack([[example([1, 2, 3], 1)]])
    moved = batch.to("cpu")
    for field in dataclasses.fields(batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after


def test_moving_to_a_device_moves_every_tensor():
    moved = pack([[example([1, 2, 3], 1)]]).to("meta")
    tensors = [v for v in (getattr(moved, f.name) for f in dataclasses.fields(moved)) if isinstance(v, torch.Tensor)]
    assert [t.device.type for t in tensors] == ["meta"] * 6


@pytest.mark.parametrize(("count", "size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 5, [3]), (1, 1, [1])])
def test_epoch_has_each_record_once_and_a_partial_last_batch(count, size, sizes):
    order = epoch_order(count, size, seed=3)
    assert [len(batch) for batch in order] == sizes
    assert sorted(i for batch in order for i in batch) == list(range(count))


def test_epoch_order_follows_the_seed_alone():
    torch.manual_seed(0)
    first = epoch_order(30, 4, seed=5)
    torch.manual_seed(1)
    assert epoch_order(30, 4, seed=5) == first
    assert epoch_order(30, 4, seed=6) != first


def test_epoch_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch_order(30, 4, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
