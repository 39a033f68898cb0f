from __future__ import annotations

import pytest
import torch

from fl_lightning.modeling.stacked_factors import StackedFactor, stack_products

CPU = torch.device("cpu")


@pytest.mark.parametrize("rank_dim", [0, 1])
def test_factors_come_back_with_their_own_ranks_as_copies(rank_dim):
    def factor(rank, features):
        return torch.randn((rank, features) if rank_dim == 0 else (features, rank))

    clients = [[factor(rank, 6), factor(rank + 1, 10)] for rank in (2, 3)]
    stacked = StackedFactor(clients, rank_dim, CPU, True)
    for index, client in enumerate(clients):
        copies = stacked.of_client(stacked.parameter, index)
        assert all(torch.equal(copy, original) for copy, original in zip(copies, client, strict=True))
        assert all(copy.is_contiguous() and copy.grad_fn is None for copy in copies)
        copies[0].fill_(7.0)
        assert not (stacked.parameter[index] == 7.0).any()


def test_layers_are_views_padded_with_zeros():
    stacked = StackedFactor([[torch.ones(2, 3)], [torch.ones(5, 3)]], 0, CPU, True)
    (layer,) = stacked.by_layer(stacked.parameter)
    assert layer.shape == (2, 8, 3)
    assert layer.sum((1, 2)).tolist() == [6.0, 15.0]
    (layer * 2).sum().backward()
    assert (stacked.parameter.grad == 2).all()


def test_one_client_is_not_padded():
    assert StackedFactor([[torch.ones(3, 4)]], 0, CPU, False).parameter.shape == (1, 12)


def test_products_of_several_ranks_are_stacked_and_missing_ones_are_zero():
    pairs = [(torch.randn(2, 5), torch.randn(7, 2)), None, (torch.randn(9, 5), torch.randn(7, 9))]
    a, b = stack_products(pairs, CPU)
    assert (a.shape, b.shape) == ((3, 16, 5), (3, 7, 16))
    for index, pair in enumerate(pairs):
        expected = torch.zeros(7, 5) if pair is None else pair[1] @ pair[0]
        torch.testing.assert_close(b[index] @ a[index], expected)
    assert stack_products([None, None], CPU) is None
