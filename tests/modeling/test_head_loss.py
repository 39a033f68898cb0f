from types import SimpleNamespace

import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY, random_model
from torch.nn.functional import cross_entropy

from fl_lightning.data.packing import pack
from fl_lightning.data.tokenization import Example
from fl_lightning.modeling import head_loss
from fl_lightning.modeling.lora import create_lora_model, load_lora_state
from fl_lightning.module import LoraClientModule

# tied, soft cap, factor on logits, divisor of logits, bias, decoder inside the base model, head inside a text model
HEADS = [
    "Qwen2",
    "Gemma 2 (soft caps)",
    "Cohere",
    "Granite (multipliers)",
    "Phi",
    "OPT",
    "Llama 4 (chunks, vision tower)",
]
POSITIONS = 8


@pytest.fixture
def module(random_state):
    def make(name, positions=POSITIONS):
        model = create_lora_model(random_model(name).requires_grad_(False), 4, 8, 0.0, ARCHITECTURES[name][2])
        load_lora_state(model, random_state(model))
        module = LoraClientModule(model).eval()
        module.choose_layout()
        module._chunk_logits = positions * VOCABULARY
        return module

    return make


def examples():
    draws = torch.Generator().manual_seed(0)
    return [Example(torch.randint(3, VOCABULARY, (n,), generator=draws), torch.arange(n) > 1) for n in (30, 7, 12)]


def factors(module):
    return [p for p in module.model.parameters() if p.requires_grad]


def watch_head(module):
    """The list to which the head's number of positions is added at every call."""
    seen = []
    head = module.model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda _, args, output: seen.append(output.shape[-2]))
    return seen


@pytest.mark.parametrize("name", HEADS)
def test_losses_and_gradients_are_those_of_all_logits_in_plain_torch(module, name):
    module, weights = module(name), (1.0, 0.3, 2.0)
    expected = []
    for example in examples():
        logits = module.model(input_ids=example.ids[None], use_cache=False).logits[0, :-1]
        marks = example.supervised[1:]
        expected.append(cross_entropy(logits[marks], example.ids[1:][marks], reduction="sum"))
    wanted = torch.autograd.grad(sum(w * x for w, x in zip(weights, expected, strict=True)), factors(module))
    seen = watch_head(module)
    losses = module(pack([[example] for example in examples()])).loss
    got = torch.autograd.grad((torch.tensor(weights) * losses).sum(), factors(module))
    assert max(seen) == POSITIONS
    assert sum(seen) == 43
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-5, atol=0)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_correct_targets_are_counted_in_all_chunks(module):
    module = module("Qwen2")
    with torch.no_grad():
        expected = [
            int((module.model(input_ids=e.ids[None]).logits[0, 1:-1].argmax(-1) == e.ids[2:]).sum()) for e in examples()
        ]
        assert module(pack([[e] for e in examples()])).correct.tolist() == expected


def test_decoder_runs_once_for_all_chunks(module):
    module, calls = module("Qwen2"), []
    module.model.get_base_model().model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    module(pack([examples()])).loss.sum().backward()
    assert calls == [1]


def test_a_head_that_trains_gets_its_gradient_from_all_logits(module):
    module = module("Phi")
    head = module.model.get_base_model().get_output_embeddings().requires_grad_()
    seen = watch_head(module)
    module(pack([examples()])).loss.sum().backward()
    assert seen == [43]
    assert head.weight.grad.any()


def test_a_base_that_is_spread_over_processes_runs_once_in_each(module, monkeypatch):
    # more calls in one process than in another would wait for each other for ever
    module = module("Qwen2")
    monkeypatch.setattr(head_loss, "FSDPModule", type(module.model.get_base_model()))
    seen = watch_head(module)
    module(pack([examples()])).loss.sum().backward()
    assert seen == [43]


def test_a_model_that_does_not_bear_chunks_is_given_all_positions(module, monkeypatch):
    module = module("Qwen2")
    monkeypatch.setattr(head_loss._Calls, "logits_of", lambda self, chunk: torch.zeros(1, chunk.shape[1], VOCABULARY))
    module.choose_layout()
    seen = watch_head(module)
    module(pack([examples()]))
    assert seen == [43]


class SmallBase(torch.nn.Module):
    """A base in fp16 whose logits are its hidden states."""

    def __init__(self):
        super().__init__()
        self.decoder = torch.nn.Identity()
        self.head = torch.nn.Linear(2, 2, bias=False, dtype=torch.float16).requires_grad_(False)
        self.head.weight.copy_(torch.eye(2))

    def get_output_embeddings(self):
        return self.head

    def get_decoder(self):
        return self.decoder

    def forward(self, input_ids, use_cache=False):
        return SimpleNamespace(logits=self.head(self.decoder(input_ids)))


def test_half_precision_keeps_gradients_of_unlikely_tokens():
    # softmax gives the second token e^-17 = 4e-8, of which fp16 would keep one digit (its smallest number is 6e-8)
    base, hidden = SmallBase(), torch.tensor([[[17.0, 0.0], [0.0, 17.0]]], dtype=torch.float16, requires_grad=True)
    targets = torch.tensor([0, 1])
    losses = head_loss.target_losses(base, lambda: base(hidden).logits, targets, chunk_logits=2)
    (65536 * losses.loss).sum().backward()
    expected = 65536 * torch.tensor(-17.0).exp().item()
    unlikely = [hidden.grad[0, 0, 1].item(), hidden.grad[0, 1, 0].item()]
    assert unlikely == [pytest.approx(expected, rel=0.03)] * 2


def test_memory_of_logits_does_not_grow_with_targets(module):
    module = module("Qwen2")
    row, shapes = pack([examples() * 20]), []
    original = head_loss.token_cross_entropy

    def note(logits, targets):
        shapes.append(logits.numel())
        return original(logits, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_loss, "token_cross_entropy", note)
        module(row).loss.sum().backward()
    assert max(shapes) == POSITIONS * VOCABULARY
