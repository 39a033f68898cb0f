from __future__ import annotations

import pytest
import torch

from fl_lightning.modeling import low_rank_product as product
from fl_lightning.modeling.low_rank_product import Segments, low_rank_product


@pytest.fixture(params=["grouped", "loop"])
def way(request, monkeypatch):
    """With torch's grouped kernel, and as where it is missing."""
    if request.param == "loop":
        monkeypatch.setattr(product, "_has_kernel", lambda device, dtype: False)
    elif product.grouped_mm is None:
        pytest.skip("torch below 2.10")
    return request.param


def tensors(clients, tokens, rank=8, in_features=16, out_features=24, dtype=torch.float32):
    draws = torch.Generator().manual_seed(0)
    shapes = [(1, tokens, in_features), (clients, rank, in_features), (clients, out_features, rank)]
    return [torch.randn(shape, generator=draws, dtype=dtype).requires_grad_() for shape in shapes]


def expected_product(x, a, b, sizes):
    parts = zip(x[0].split(sizes), a, b, strict=True)
    return torch.cat([part @ down.T @ up.T for part, down, up in parts])[None]


@pytest.mark.parametrize("sizes", [[5], [3, 0, 4], [0, 0, 7], [7, 0, 0], [1, 2, 3, 4]])
def test_values_and_gradients_are_those_of_a_product_for_each_segment(way, sizes):
    x, a, b = tensors(len(sizes), sum(sizes))
    weight = torch.randn(1, sum(sizes), 24)
    results = []
    for compute in (
        lambda: low_rank_product(x, a, b, Segments.from_sizes(sizes, "cpu")),
        lambda: expected_product(x, a, b, sizes),
    ):
        output = compute()
        results.append((output, *torch.autograd.grad((output * weight).sum(), (x, a, b))))
    for computed, expected in zip(*results, strict=True):
        torch.testing.assert_close(computed, expected, atol=1e-4, rtol=1e-5)


def test_gradient_may_be_expanded(way):
    x, a, b = tensors(2, 5)
    low_rank_product(x, a, b, Segments.from_sizes([2, 3], "cpu")).sum().backward()
    expected = torch.autograd.grad(expected_product(x, a, b, [2, 3]).sum(), (x, a, b))
    for tensor, gradient in zip((x, a, b), expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_inputs_get_no_gradient(way, frozen):
    inputs = tensors(2, 5)
    inputs[frozen].requires_grad_(False)
    low_rank_product(*inputs, Segments.from_sizes([2, 3], "cpu")).square().sum().backward()
    assert [tensor.grad is None for tensor in inputs] == [index == frozen for index in range(3)]


def test_sizes_that_the_kernel_refuses_are_computed_too(way):
    x, a, b = tensors(2, 5, rank=3, in_features=5, out_features=7)
    computed = low_rank_product(x, a, b, Segments.from_sizes([2, 3], "cpu"))
    torch.testing.assert_close(computed, expected_product(x, a, b, [2, 3]))


@pytest.mark.parametrize("sizes", [[5], [3, 2], [3, 0, 4]])
def test_a_product_of_rank_0_is_zero(way, sizes):
    """As combiner residual has it, where the mean of the factors is exact."""
    x, a, b = tensors(len(sizes), sum(sizes), rank=0)
    output = low_rank_product(x, a, b, Segments.from_sizes(sizes, "cpu"))
    torch.testing.assert_close(output, torch.zeros(1, sum(sizes), 24), rtol=0, atol=0)
    gradients = torch.autograd.grad(output.square().sum(), (x, a, b))
    assert [gradient.shape for gradient in gradients] == [x.shape, a.shape, b.shape]
    assert not gradients[0].any()


def test_a_client_that_is_not_finite_does_not_reach_the_others(way):
    x, a, b = tensors(3, 9)
    with torch.no_grad():
        a[1], b[1] = torch.nan, torch.inf
    output = low_rank_product(x, a, b, Segments.from_sizes([3, 3, 3], "cpu"))
    gradients = torch.autograd.grad(output.square().sum(), (x, a, b))
    assert not output[:, 3:6].isfinite().any()
    for tensor in (output, gradients[0]):
        assert tensor[:, [0, 1, 2, 6, 7, 8]].isfinite().all()
    assert all(gradient[[0, 2]].isfinite().all() for gradient in gradients[1:])


def test_one_client_may_have_rows_of_any_shape():
    x, a, b = tensors(1, 12)
    rows = x.view(3, 4, 16)
    torch.testing.assert_close(low_rank_product(rows, a, b, None), rows @ a[0].T @ b[0].T)


def test_gpus_without_a_grouped_kernel_and_precisions_other_than_bf16_take_the_loop(monkeypatch):
    """There torch's `grouped_mm` would copy the offsets to the host in each of a layer's calls."""
    gpu = torch.device("cuda", 0)
    for capability, dtype, expected in (
        ((9, 0), torch.bfloat16, product.grouped_mm is not None),
        ((9, 0), torch.float32, False),
        ((8, 0), torch.bfloat16, False),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, result=capability: result)
        assert product._has_kernel.__wrapped__(gpu, dtype) is expected
