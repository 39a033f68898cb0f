import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from fl_lightning.modeling.loss import token_cross_entropy


def test_two_classes_by_hand():
    # softmax([0, ln 3]) = [1/4, 3/4]; −ln(1/4) = 1.386294, −ln(3/4) = 0.287682; the gradient is softmax − onehot
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]], requires_grad=True)
    loss = token_cross_entropy(logits, torch.tensor([0, 1]))
    torch.testing.assert_close(loss, torch.tensor([1.386294, 0.287682]))
    (2 * loss[0] + loss[1]).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.5, 1.5], [0.25, -0.25]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch_in_value_and_gradient(dtype):
    draws = torch.Generator().manual_seed(0)
    logits = (10 * torch.randn(7, 50, generator=draws)).to(dtype).requires_grad_()
    twin = logits.detach().clone().requires_grad_()
    targets, weights = torch.randint(50, (7,), generator=draws), torch.rand(7, generator=draws)
    ours, theirs = token_cross_entropy(logits, targets), cross_entropy(twin.float(), targets, reduction="none")
    torch.testing.assert_close(ours, theirs)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad, twin.grad)


def test_large_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = token_cross_entropy(logits, torch.tensor([1]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(2e4)
    assert torch.isfinite(logits.grad).all()
