import contextlib
import copy

import pytest
import torch
from lightning.fabric import Fabric

from fl_lightning.config import TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.packing import pack
from fl_lightning.errors import InputError
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.modeling.activation_checkpointing import recompute_layers
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.dropout import dropout_stream
from fl_lightning.modeling.lora import create_lora_model
from fl_lightning.modeling.supervised_positions import decoder_layers
from fl_lightning.module import LoraClientModule
from fl_lightning.training.local_clients import LocalClients

TARGETS = {"gpt2": ["c_attn"], "bloom": ["query_key_value"]}
IDS = ["hr/c0", "hr/c1", "hr/c2"]


def make_model(base, kind, dropout=0.1, targets=None):
    """A model as `base` with four layers: two would leave only one to run again."""
    config = copy.deepcopy(base.config)
    config.num_hidden_layers = 4
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        deeper = type(base)(config).requires_grad_(False).eval()
    return create_lora_model(deeper, 4, 8, dropout, targets or TARGETS.get(kind, ["q_proj", "v_proj"]))


def fit(base, kind, examples, random_state, precision="32-true", at_once=3, device="cpu", targets=None, **training):
    model = make_model(base, kind, targets=targets)
    data = {c: ClientData(*c.split("/"), examples(5 + 3 * k, seed=k), examples(1, 9)) for k, c in enumerate(IDS)}
    fabric = Fabric(accelerator=device, devices=1, precision=precision)
    module = LoraClientModule(model, learning_rate=1e-3)
    config = TrainingConfig(accumulate_grad_batches=2, proximal_mu=0.01, **training)
    local = LocalClients(fabric, module, data, config, at_once)
    tasks = [ClientTask(c, 1, random_state(model, seed=k), 7, evaluate=True) for k, c in enumerate(IDS)]
    return list(local.fit(tasks)), model


@pytest.mark.parametrize(
    ("kind", "precision", "targets", "at_once"),
    [
        ("qwen", "32-true", None, 1),
        ("qwen", "32-true", None, 3),
        ("qwen", "bf16-mixed", None, 3),
        ("qwen", "32-true", ["q_proj", "o_proj", "gate_proj", "down_proj"], 3),
        ("llama", "32-true", None, 3),
        ("gpt2", "32-true", None, 3),
        ("stablelm", "32-true", None, 3),
    ],
)
def test_results_are_the_same_with_and_without(
    kind, precision, targets, at_once, micro_model, make_examples, random_state
):
    results = [
        fit(
            micro_model(kind),
            kind,
            make_examples,
            random_state,
            precision,
            at_once,
            targets=targets,
            gradient_checkpointing=on,
        )[0]
        for on in (False, True)
    ]
    for plain, again in zip(*results, strict=True):
        assert plain.losses == pytest.approx(again.losses, abs=1e-6)
        assert plain.metrics.loss_sum == pytest.approx(again.metrics.loss_sum, abs=1e-5)
        for name in plain.state:
            assert torch.allclose(plain.state[name], again.state[name], rtol=0, atol=1e-6), name


def test_nothing_is_left_behind(micro_model, make_examples, random_state):
    _, model = fit(micro_model("qwen"), "qwen", make_examples, random_state, gradient_checkpointing=True)
    assert not any("forward" in vars(layer) for layer in decoder_layers(model.get_base_model()))


def step(model, make_examples, on, watch):
    """One forward and backward pass of two clients with dropout; (gradients, watched value of the forward pass)."""
    cohort = LoraCohort(model)
    draw = torch.Generator().manual_seed(5)
    state = {
        f"{s.name}.lora_{f}.weight": torch.randn(shape, generator=draw)
        for s in cohort._sites
        for f, shape in (("A", (4, s.layer.in_features)), ("B", (s.layer.out_features, 4)))
    }
    cohort.load([state, state], "cpu")
    streams = [dropout_stream(seed) for seed in (1, 2)]
    module = LoraClientModule(model).eval()
    row = pack([make_examples(3, seed=1, low=40, high=60), make_examples(3, seed=2, low=40, high=60)])
    with cohort.attached(), recompute_layers(model.get_base_model()) if on else contextlib.nullcontext():
        cohort.set_segments(row.client_tokens, streams)
        with watch() as seen:
            loss = module(row).mean_loss().sum()
        loss.backward()
    return [p.grad for p in cohort.parameters()], seen


class Kept:
    """Bytes that the forward pass keeps for the backward pass."""

    def __init__(self):
        self.total, self._seen = 0, set()

    def __enter__(self):
        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.total += storage.nbytes()
            return tensor

        self._hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error):
        self._hooks.__exit__(*error)


def test_less_is_kept_for_the_backward_pass_and_dropout_repeats_its_draws(micro_model, make_examples):
    plain, kept = step(make_model(micro_model("qwen"), "qwen"), make_examples, False, Kept)
    again, less = step(make_model(micro_model("qwen"), "qwen"), make_examples, True, Kept)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(plain, again, strict=True))
    assert any(float(a.abs().max()) > 1e-3 for a in plain)
    assert less.total < 0.7 * kept.total


def test_layers_but_the_last_run_twice(micro_model, make_examples):
    model = make_model(micro_model("qwen"), "qwen")
    runs = [0] * 4

    def count(index):
        def hook(*_):
            runs[index] += 1

        return hook

    for index, layer in enumerate(decoder_layers(model.get_base_model())):
        layer.mlp.register_forward_pre_hook(count(index))
    step(model, make_examples, True, Kept)
    assert runs == [2, 2, 2, 1]


def test_a_layer_that_had_a_forward_of_its_own_gets_it_back(micro_model):
    model = make_model(micro_model("qwen"), "qwen")
    layers = decoder_layers(model.get_base_model())
    own = layers[0].forward
    layers[0].forward = own
    with pytest.raises(ZeroDivisionError), recompute_layers(model.get_base_model()):
        raise ZeroDivisionError
    assert vars(layers[0])["forward"] is own
    assert "forward" not in vars(layers[1])


def test_a_model_without_a_list_of_layers_is_refused(micro_model, make_examples, random_state, monkeypatch):
    monkeypatch.setattr("fl_lightning.modeling.activation_checkpointing.decoder_layers", lambda model: None)
    with pytest.raises(InputError, match="training.gradient_checkpointing: expected false for .*, got true"):
        fit(micro_model("qwen"), "qwen", make_examples, random_state, gradient_checkpointing=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_results_are_the_same_on_a_gpu(precision, micro_model, make_examples, random_state):
    results = [
        fit(
            micro_model("qwen"),
            "qwen",
            make_examples,
            random_state,
            precision,
            device="cuda",
            gradient_checkpointing=on,
        )[0]
        for on in (False, True)
    ]
    for plain, again in zip(*results, strict=True):
        for name in plain.state:
            assert torch.allclose(plain.state[name], again.state[name], rtol=0, atol=1e-5), name
