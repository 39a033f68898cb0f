from __future__ import annotations

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model

from fl_lightning.data.packing import pack
from fl_lightning.errors import InputError
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.dropout import dropout_stream
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model, load_lora_state
from fl_lightning.module import LoraClientModule

TARGETS = {"qwen": ["q_proj", "v_proj"], "llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


@pytest.fixture
def adapted(micro_model):
    """Factory of (module, PEFT model) on a micro model."""

    def make(kind="qwen", dropout=0.0, targets=None):
        names = targets or TARGETS[kind]
        model = create_lora_model(micro_model(kind), r=4, lora_alpha=8, lora_dropout=dropout, target_modules=names)
        return LoraClientModule(model).eval(), model

    return make


@pytest.mark.parametrize("kind", ["qwen", "llama", "gpt2"])
def test_cohort_gives_each_client_the_loss_of_its_own_peft_adapter(adapted, random_state, make_examples, kind):
    module, model = adapted(kind)
    states = [random_state(model, seed) for seed in range(3)]
    clients = [make_examples(count, seed=count) for count in (1, 3, 2)]
    cohort = LoraCohort(model)
    cohort.load(states, "cpu")
    row = pack(clients)
    with torch.no_grad():
        with cohort.attached():
            cohort.set_segments(row.client_tokens)
            together = module(row).loss
        for k, state in enumerate(states):
            load_lora_state(model, state)
            torch.testing.assert_close(together[k], module(pack([clients[k]])).loss[0], atol=1e-4, rtol=0)


def gradients_of(cohort, factor, index):
    """The gradients of one client's A or B, layer by layer."""
    stacked = {"A": cohort._a, "B": cohort._b}[factor]
    return stacked.of_client(stacked.parameter.grad, index)


@pytest.mark.parametrize("kind", ["qwen", "gpt2"])
def test_cohort_gives_each_client_the_gradients_of_its_own_peft_adapter(adapted, random_state, make_examples, kind):
    module, model = adapted(kind)
    states = [random_state(model, seed) for seed in range(2)]
    clients = [make_examples(count, seed=count) for count in (1, 3)]
    cohort = LoraCohort(model)
    cohort.load(states, "cpu")
    row = pack(clients)
    with cohort.attached():
        cohort.set_segments(row.client_tokens)
        module(row).mean_loss().sum().backward()
    for k, state in enumerate(states):
        load_lora_state(model, state)
        model.zero_grad()
        module(pack([clients[k]])).mean_loss().sum().backward()
        for factor in ("A", "B"):
            alone = [p.grad for n, p in model.named_parameters() if f"lora_{factor}" in n]
            for gradient, expected in zip(gradients_of(cohort, factor, k), alone, strict=True):
                torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_states_come_back_as_they_were_loaded(adapted, random_state):
    _, model = adapted()
    states = [random_state(model, seed) for seed in range(3)]
    cohort = LoraCohort(model)
    cohort.load(states, "cpu")
    for k, state in enumerate(states):
        got = cohort.state(k)
        assert list(got) == sorted(state)
        assert all(torch.equal(got[n], state[n]) for n in state)


def test_snapshot_and_start_share_no_memory_with_the_cohort(adapted, random_state):
    _, model = adapted()
    start = random_state(model)
    kept = {n: t.clone() for n, t in start.items()}
    cohort = LoraCohort(model)
    cohort.load([start], "cpu")
    taken = cohort.state(0)
    with torch.no_grad():
        for parameter in cohort.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(start[n], kept[n]) and torch.equal(taken[n], kept[n]) for n in kept)


def test_adapter_of_the_model_itself_is_off_while_attached_and_back_afterwards(adapted, random_state, make_examples):
    module, model = adapted()
    load_lora_state(model, random_state(model, 9))
    before, row = collect_lora_state(model), pack([make_examples(2)])
    cohort = LoraCohort(model)
    cohort.load([{n: torch.zeros_like(t) for n, t in before.items()}], "cpu")
    with torch.no_grad():
        own = module(row).loss
        with model.disable_adapter():
            base = module(row).loss
        with cohort.attached():
            cohort.set_segments(row.client_tokens)
            attached = module(row).loss
        after = module(row).loss
    assert torch.equal(attached, base)
    assert torch.equal(after, own)
    assert not torch.equal(own, base)
    assert all(torch.equal(t, before[n]) for n, t in collect_lora_state(model).items())


def test_an_error_inside_the_block_detaches_the_cohort(adapted, random_state, make_examples):
    module, model = adapted()
    load_lora_state(model, random_state(model, 9))
    row = pack([make_examples(2)])
    cohort = LoraCohort(model)
    cohort.load([random_state(model, 1)], "cpu")
    with torch.no_grad():
        own = module(row).loss
        with pytest.raises(ZeroDivisionError), cohort.attached():
            raise ZeroDivisionError
        assert torch.equal(module(row).loss, own)


def test_own_adapter_can_train_after_the_cohort_was_attached(adapted, random_state):
    _, model = adapted()
    before = {n for n, p in model.named_parameters() if p.requires_grad}
    cohort = LoraCohort(model)
    cohort.load([random_state(model)], "cpu")
    with cohort.attached():
        pass
    assert {n for n, p in model.named_parameters() if p.requires_grad} == before != set()


def test_client_without_tokens_in_a_row_gets_no_gradient(adapted, random_state, make_examples):
    module, model = adapted()
    cohort = LoraCohort(model)
    cohort.load([random_state(model, s) for s in range(2)], "cpu")
    row = pack([[], make_examples(2)])
    with cohort.attached():
        cohort.set_segments(row.client_tokens)
        module(row).mean_loss().sum().backward()
    for parameter in cohort.parameters():
        assert not parameter.grad[0].any()
        assert parameter.grad[1].any()


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e6])
def test_clipping_is_per_client_as_clip_grad_norm_does_for_one(adapted, random_state, max_norm):
    _, model = adapted()
    cohort = LoraCohort(model)
    cohort.load([random_state(model, s) for s in range(3)], "cpu")
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.001, 0.1, 10.0])
    for p in cohort.parameters():
        p.grad = torch.randn(p.shape, generator=generator) * scales.view(3, *[1] * (p.ndim - 1))
    alone = []
    for k in range(3):
        copies = [torch.nn.Parameter(p[k].detach().clone()) for p in cohort.parameters()]
        for copy, p in zip(copies, cohort.parameters(), strict=True):
            copy.grad = p.grad[k].clone()
        torch.nn.utils.clip_grad_norm_(copies, max_norm)
        alone.append([c.grad for c in copies])
    cohort.clip_gradients(max_norm)
    for k in range(3):
        for p, wanted in zip(cohort.parameters(), alone[k], strict=True):
            torch.testing.assert_close(p.grad[k], wanted, atol=1e-7, rtol=1e-5)


def test_clipping_to_zero_is_off(adapted, random_state):
    _, model = adapted()
    cohort = LoraCohort(model)
    cohort.load([random_state(model)], "cpu")
    for p in cohort.parameters():
        p.grad = torch.full_like(p, 100.0)
    cohort.clip_gradients(0.0)
    assert all((p.grad == 100.0).all() for p in cohort.parameters())


def test_dropout_of_a_client_follows_its_own_stream(adapted, random_state, make_examples):
    module, model = adapted(dropout=0.5)
    states = [random_state(model, s) for s in range(2)]
    clients = [make_examples(2, seed=s) for s in range(2)]

    def loss(chosen, seeds):
        cohort = LoraCohort(model)
        cohort.load([states[k] for k in chosen], "cpu")
        row = pack([clients[k] for k in chosen])
        with torch.no_grad(), cohort.attached():
            cohort.set_segments(row.client_tokens, [dropout_stream(s) for s in seeds])
            return module(row).loss

    together = loss([0, 1], [5, 6])
    torch.testing.assert_close(together[1:], loss([1], [6]), atol=1e-4, rtol=0)
    assert (together[1] - loss([1], [7])[0]).abs() > 1e-3


def test_dropout_is_off_without_streams(adapted, random_state, make_examples):
    losses = []
    for dropout in (0.5, 0.0):
        module, model = adapted(dropout=dropout)
        cohort = LoraCohort(model)
        cohort.load([random_state(model)], "cpu")
        row = pack([make_examples(2)])
        with torch.no_grad(), cohort.attached():
            cohort.set_segments(row.client_tokens)
            losses.append(module(row).loss)
    assert torch.equal(*losses)


@pytest.mark.parametrize(("segments", "streams"), [((3,), None), ((1, 1, 1), None), ((2, 1), [dropout_stream(0)])])
def test_wrong_number_of_segments_or_streams_is_refused(adapted, random_state, segments, streams):
    _, model = adapted()
    cohort = LoraCohort(model)
    cohort.load([random_state(model, s) for s in range(2)], "cpu")
    with pytest.raises(ValueError, match="2 clients"):
        cohort.set_segments(segments, streams)


@pytest.mark.parametrize(("layer", "reason"), [("embed_tokens", "not a plain LoRA"), ("lm_head", "the output head")])
def test_adapters_of_peft_on_embeddings_and_heads_are_refused(micro_qwen, layer, reason):
    model = get_peft_model(micro_qwen, PeftLoraConfig(target_modules=[layer], task_type="CAUSAL_LM"))
    with pytest.raises(InputError, match=rf"lora\.target_modules: .*{reason}"):
        LoraCohort(model)


def test_adapters_on_single_experts_are_refused(micro_qwen):
    micro_qwen.model.layers[0].mlp.experts = torch.nn.ModuleList([torch.nn.Linear(32, 32)])
    micro_qwen.model.layers[0].mlp.experts[0].up = torch.nn.Linear(32, 32)
    model = get_peft_model(micro_qwen, PeftLoraConfig(target_modules=["up"], task_type="CAUSAL_LM"))
    with pytest.raises(InputError, match=r"mlp\.experts\.0\.up is part of an expert"):
        LoraCohort(model)


def test_layers_that_see_a_part_of_the_tokens_are_refused(adapted, make_examples):
    module, model = adapted()
    mlp = model.get_base_model().model.layers[0].mlp
    mlp.forward = lambda x: x + model.get_base_model().model.layers[0].self_attn.q_proj(x[:, :2]).sum()
    row = pack([make_examples(2)])
    cohort = LoraCohort(model)
    cohort.load([collect_lora_state(model)], "cpu")
    cohort.set_segments(row.client_tokens, lengths=row.lengths)
    with cohort.attached(), pytest.raises(InputError, match=f"sees 2 of {row.num_tokens} tokens"):
        module(row)


def cut(state, rank):
    """The first rows of A and columns of B."""
    return {n: (t[:rank] if "lora_A" in n else t[:, :rank]).contiguous() for n, t in state.items()}


def test_clients_of_several_ranks_and_scales_train_as_each_would_alone(adapted, random_state, make_examples):
    module, model = adapted()
    ranks, gains = (1, 4, 2), (2.0, 1.0, 0.5)
    states = [cut(random_state(model, seed), rank) for seed, rank in enumerate(ranks)]
    clients = [make_examples(count, seed=count) for count in (1, 3, 2)]

    def trained(chosen):
        cohort = LoraCohort(model)
        cohort.load([states[k] for k in chosen], "cpu", relative_scalings=[gains[k] for k in chosen])
        optimizer = torch.optim.AdamW(cohort.parameters(), lr=1e-2, weight_decay=0.1, eps=1e-5)
        row = pack([clients[k] for k in chosen])
        with cohort.attached():
            for _ in range(3):
                cohort.set_segments(row.client_tokens)
                module(row).mean_loss().sum().backward()
                cohort.clip_gradients(0.5)
                optimizer.step()
                optimizer.zero_grad()
        return [cohort.state(index) for index in range(len(chosen))]

    together, alone = trained([0, 1, 2]), [trained([k])[0] for k in range(3)]
    for k in range(3):
        assert {n: t.shape for n, t in together[k].items()} == {n: t.shape for n, t in states[k].items()}
        assert all(t.is_contiguous() for t in together[k].values())
        for name, tensor in together[k].items():
            torch.testing.assert_close(tensor, alone[k][name], atol=1e-5, rtol=0)
            assert not torch.equal(tensor, states[k][name])


@pytest.mark.parametrize("kind", ["qwen", "gpt2"])
def test_gain_and_frozen_product_are_as_if_they_were_in_the_adapter(adapted, random_state, make_examples, kind):
    module, model = adapted(kind)
    factors, beside = cut(random_state(model, 0), 2), random_state(model, 1)
    other = cut(random_state(model, 2), 3)
    whole = {n: torch.cat([factors[n] * (0.5 if "lora_B" in n else 1), beside[n]], int("lora_B" in n)) for n in factors}
    row = pack([make_examples(2, seed=k) for k in range(4)])
    cohort = LoraCohort(model)
    losses = []
    for states, gains, frozen in (
        ([factors, factors, other, factors], [0.5, 0.5, 1.0, 0.5], [beside, beside, {}, beside]),
        ([whole, whole, other, whole], None, None),
    ):
        cohort.load(states, "cpu", relative_scalings=gains, frozen_products=frozen)
        with torch.no_grad(), cohort.attached():
            cohort.set_segments(row.client_tokens)
            losses.append(module(row).loss)
            cohort.set_segments([*row.client_tokens[:2], 0, sum(row.client_tokens[2:])])  # nobody of the third stretch
            module(row)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=0)


def test_frozen_products_get_no_gradient_and_let_it_through(adapted, random_state, make_examples):
    module, model = adapted("qwen", targets=["q_proj", "down_proj"])
    factors, beside = random_state(model, 0), random_state(model, 1)
    row = pack([make_examples(3)])
    gradients = []
    for state, frozen in (
        (factors, [beside]),
        ({n: torch.cat([factors[n], beside[n]], int("lora_B" in n)) for n in factors}, None),
    ):
        cohort = LoraCohort(model)
        cohort.load([state], "cpu", frozen_products=frozen)
        with cohort.attached():
            cohort.set_segments(row.client_tokens)
            module(row).loss.sum().backward()
        gradients.append([g for factor in ("A", "B") for g in gradients_of(cohort, factor, 0)])
    # The losses of a dozen tokens are summed in two orders of fp32: rounding is relative to the largest gradient.
    atol = 1e-6 * max(float(gradient.abs().max()) for gradient in gradients[0])
    for alone, both in zip(*gradients, strict=True):
        torch.testing.assert_close(alone, both[: alone.shape[0], : alone.shape[1]], atol=atol, rtol=1e-5)
