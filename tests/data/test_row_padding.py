import pytest
import torch

from fl_lightning.data.packing import pack
from fl_lightning.data.row_padding import RowSizes, pad_row, padded_sizes, round_up


@pytest.fixture
def batch(make_examples):
    return pack([make_examples(3, seed=1), [], make_examples(2, seed=2)])


def test_few_sizes_serve_all_rows_and_less_than_an_eighth_is_padding():
    sizes = {round_up(n) for n in range(1, 2**14 + 1)}
    assert len(sizes) <= 8 * 11 + 1
    assert all(n <= round_up(n) < max(9, 1.125 * n + 1) for n in range(1, 2**14 + 1))
    assert all(round_up(n) == n for n in sizes)


def test_padding_is_a_client_more_behind_the_row(batch):
    sizes = padded_sizes(batch)
    row = pad_row(batch)
    assert RowSizes.of(row) == sizes
    assert torch.equal(row.input_ids[:, : batch.num_tokens], batch.input_ids)
    assert torch.equal(row.keep[: len(batch.keep)], batch.keep)
    assert torch.equal(row.targets[: len(batch.targets)], batch.targets)
    assert row.client_tokens == (*batch.client_tokens, sizes.tokens - batch.num_tokens)
    assert row.client_targets == (*batch.client_targets, sizes.targets - len(batch.targets))
    assert set(row.owners[len(batch.owners) :].tolist()) <= {3}
    assert sum(row.lengths) == row.num_tokens
    assert len(set(row.keep.tolist())) == len(row.keep)
    assert row.starts.tolist() == [0, *torch.tensor(row.lengths).cumsum(0).tolist()]
    assert row.starts.dtype == torch.int32
    assert max(row.lengths) <= row.longest
    for start, length in zip(row.starts.tolist(), row.lengths, strict=False):
        assert row.position_ids[0, start : start + length].tolist() == list(range(length))


def test_sizes_without_room_are_refused(batch):
    sizes = RowSizes.of(batch)
    assert pad_row(batch, sizes).client_tokens == (*batch.client_tokens, 0)
    for wrong in (
        RowSizes(sizes.tokens - 1, sizes.targets, sizes.sequences, sizes.longest),
        RowSizes(sizes.tokens + 1, sizes.targets + 2, sizes.sequences + 1, sizes.longest),
        RowSizes(sizes.tokens + 8, sizes.targets, sizes.sequences, sizes.longest),
    ):
        with pytest.raises(ValueError, match="expected sizes with room"):
            pad_row(batch, wrong)
