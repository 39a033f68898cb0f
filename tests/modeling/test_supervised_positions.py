from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from fl_lightning.modeling.lora import create_lora_model, load_lora_state
from fl_lightning.modeling.supervised_positions import last_mlp, last_mlp_on

TARGETS = {"qwen": ["q_proj", "v_proj"], "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


@pytest.fixture
def adapted(micro_model, random_state):
    """Factory of PEFT models on a micro model in which every adapter tensor has a gradient."""

    def make(kind="qwen", targets=None):
        model = create_lora_model(
            micro_model(kind), r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets or TARGETS[kind]
        )
        load_lora_state(model, random_state(model))
        return model.eval()

    return make


def loss_and_gradients(model, ids, keep):
    logits = model(input_ids=ids, logits_to_keep=keep).logits[0]
    loss = cross_entropy(logits, ids[0, keep + 1])
    return loss.detach(), torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


def widths(module):
    """The list to which a module's input lengths are added at every forward pass."""
    seen = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_loss_and_gradients_are_those_of_the_whole_mlp(adapted, kind):
    model = adapted(kind)
    ids = torch.randint(5, 4000, (1, 11), generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([3, 4, 9])
    loss, gradients = loss_and_gradients(model, ids, keep)
    with last_mlp_on(model.get_base_model(), keep):
        got, got_gradients = loss_and_gradients(model, ids, keep)
    torch.testing.assert_close(got, loss, atol=1e-6, rtol=1e-6)
    for one, other in zip(got_gradients, gradients, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_only_the_last_mlp_sees_fewer_positions_and_only_inside_the_block(adapted):
    model = adapted()
    first, last = (layer.mlp.down_proj for layer in model.get_base_model().base_model.layers)
    seen = widths(first), widths(last)
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        with last_mlp_on(model.get_base_model(), torch.tensor([2, 6])):
            model(input_ids=ids)
        model(input_ids=ids)
    assert seen == ([7, 7], [2, 7])


def test_output_is_zero_at_the_other_positions(adapted):
    model = adapted()
    mlp, x = last_mlp(model.get_base_model()), torch.randn(1, 4, 32)
    with torch.no_grad():
        whole = mlp(x)
        with last_mlp_on(model.get_base_model(), torch.tensor([1, 3])):
            part = mlp(x)
    torch.testing.assert_close(part[:, [1, 3]], whole[:, [1, 3]])
    assert not part[:, [0, 2]].any()


def test_an_error_inside_the_block_takes_the_hooks_off(adapted):
    model = adapted()
    seen = widths(last_mlp(model.get_base_model()).down_proj)
    with pytest.raises(ZeroDivisionError), last_mlp_on(model.get_base_model(), torch.tensor([0])):
        raise ZeroDivisionError
    model(input_ids=torch.arange(5, 12)[None])
    assert seen == [7]


class Experts(torch.nn.Module):
    """Gives router scores too, as mixtures of experts do, and may look at more than the hidden states."""

    def forward(self, x, previous=None):
        return 2 * x, x.mean(-1) if previous is None else previous


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Module()])
        self.layers[0].mlp = Experts()


def test_router_scores_are_passed_on_as_they_are():
    decoder, x = Decoder(), torch.arange(1.0, 4.0).view(1, 3, 1)
    with last_mlp_on(decoder, torch.tensor([2])):
        output, scores = decoder.layers[0].mlp(x)
    assert output.flatten().tolist() == [0.0, 0.0, 6.0]
    assert scores.tolist() == [[3.0]]


def test_mlp_that_takes_more_than_the_hidden_states_sees_them_all():
    decoder, x = Decoder(), torch.arange(1.0, 4.0).view(1, 3, 1)
    with last_mlp_on(decoder, torch.tensor([2])):
        by_name, by_place = decoder.layers[0].mlp(x, previous=x), decoder.layers[0].mlp(x, x)
    assert torch.equal(by_name[0], 2 * x)
    assert torch.equal(by_place[0], 2 * x)


def test_mlp_with_lora_layers_is_left_alone(adapted):
    model = adapted(targets=["q_proj", "down_proj"])
    assert last_mlp(model.get_base_model()) is None
    ids, keep = torch.arange(5, 12)[None], torch.tensor([2])
    loss, _ = loss_and_gradients(model, ids, keep)
    with last_mlp_on(model.get_base_model(), keep):
        assert torch.equal(loss_and_gradients(model, ids, keep)[0], loss)


def test_layer_that_is_run_anew_in_the_backward_pass_is_left_alone(adapted):
    base = adapted().get_base_model()
    assert last_mlp(base) is not None
    kind = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"  # renamed in transformers 5
    getattr(base, f"{kind}_checkpointing_enable")()
    assert last_mlp(base) is None


def test_model_without_layers_of_that_kind_is_left_alone(micro_model):
    assert last_mlp(micro_model("mamba")) is None
    assert last_mlp(torch.nn.Linear(1, 1)) is None
