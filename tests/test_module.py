from __future__ import annotations

import lightning as L
import pytest
import torch
from torch.nn.functional import cross_entropy

from fl_lightning.data.packing import pack
from fl_lightning.datamodule import FederatedDataModule
from fl_lightning.modeling.attention import ATTENTION_NAME
from fl_lightning.modeling.lora import create_lora_model, load_lora_state
from fl_lightning.module import ClientSums, LoraClientModule


@pytest.fixture
def module(micro_qwen, random_state):
    model = create_lora_model(micro_qwen, r=4, lora_alpha=8, lora_dropout=0.0)
    load_lora_state(model, random_state(model))
    return LoraClientModule(model, learning_rate=1e-3).eval()


class Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def trainer_of(*callbacks, **arguments):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu", devices=1, callbacks=list(callbacks), enable_model_summary=False, **quiet, **arguments
    )


@pytest.fixture
def trained_parts(tiny_base):
    base, tokenizer = tiny_base
    module = LoraClientModule(create_lora_model(base, lora_dropout=0.0), learning_rate=5e-3)
    data = FederatedDataModule(
        "bundled:departments", tokenizer, client="customer_support/client_0", max_records=48, max_length=96
    )
    return module, data


def test_sums_of_each_client_are_those_of_the_client_alone(module, make_examples):
    clients = [make_examples(n, seed=n) for n in (1, 2, 3)]
    together = module(pack(clients))
    for k, client in enumerate(clients):
        alone = module(pack([client]))
        torch.testing.assert_close(together.loss[k], alone.loss[0], atol=1e-4, rtol=0)
        assert (together.correct[k], together.targets[k]) == (alone.correct[0], alone.targets[0])


def test_loss_is_the_cross_entropy_on_supervised_tokens(module, make_examples):
    (example,) = make_examples(1, seed=2)
    places = example.supervised.nonzero().squeeze(1)
    with torch.no_grad():
        logits = module.model(input_ids=example.ids[None]).logits[0, places - 1]
        sums = module(pack([[example]]))
    assert sums.loss.item() == pytest.approx(
        cross_entropy(logits, example.ids[places], reduction="sum").item(), abs=1e-4
    )
    assert sums.correct.item() == (logits.argmax(-1) == example.ids[places]).sum().item()
    assert sums.targets.item() == len(places)


def test_mean_loss_of_a_client_without_targets_is_zero():
    sums = ClientSums(torch.tensor([6.0, 0.0]), torch.zeros(2), torch.tensor([3, 0]))
    assert sums.mean_loss().tolist() == [2.0, 0.0]


def test_training_step_sums_the_clients_own_means(module, make_examples):
    clients = [make_examples(n, seed=n) for n in (1, 4)]
    means = [module.training_step(pack([c])).item() for c in clients]
    assert module.training_step(pack(clients)).item() == pytest.approx(sum(means), abs=1e-4)


def test_optimizer_is_adamw_on_the_lora_factors_only(module):
    optimizer = module.configure_optimizers()
    chosen = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert isinstance(optimizer, torch.optim.AdamW)
    assert chosen == {id(p) for n, p in module.named_parameters() if "lora_" in n}
    plain = torch.optim.AdamW([torch.zeros(1)], lr=1e-3, weight_decay=0.0)
    assert optimizer.defaults == plain.defaults


@pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
def test_learning_rate_must_be_above_zero(micro_qwen, rate):
    with pytest.raises(ValueError, match="learning_rate"):
        LoraClientModule(create_lora_model(micro_qwen), learning_rate=rate)


def test_module_switches_the_base_to_packed_attention(module):
    assert module.model.config._attn_implementation == ATTENTION_NAME


def test_module_runs_unchanged_under_trainer(trained_parts):
    module, data = trained_parts
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    trainer = trainer_of(max_steps=3, limit_val_batches=2, val_check_interval=3)
    trainer.fit(module, data)
    assert trainer.global_step == 3
    assert {"train/loss", "eval/loss", "eval/token_accuracy"} <= set(trainer.callback_metrics)
    moved = {n for n, p in module.named_parameters() if not torch.equal(p.cpu(), before[n])}
    assert moved == {n for n in before if "lora_" in n}


def test_module_logs_its_training_loss_under_trainer(trained_parts):
    module, data = trained_parts
    losses = Losses()
    trainer = trainer_of(losses, max_steps=2, limit_val_batches=0)
    trainer.fit(module, data)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(losses.values[-1], abs=1e-6)


def test_validation_under_trainer_logs_loss_and_accuracy_weighted_by_tokens(trained_parts):
    module, data = trained_parts
    trainer = trainer_of()
    (figures,) = trainer.validate(module, data, verbose=False)
    module.eval()
    with torch.no_grad():
        sums = [module(batch) for batch in data.val_dataloader()]
    tokens = sum(s.targets.sum().item() for s in sums)
    assert figures["eval/loss"] == pytest.approx(sum(s.loss.sum().item() for s in sums) / tokens, rel=1e-4)
    assert figures["eval/token_accuracy"] == pytest.approx(sum(s.correct.sum().item() for s in sums) / tokens, rel=1e-4)


def test_loss_falls_over_an_epoch_under_trainer(trained_parts):
    module, data = trained_parts
    losses = Losses()
    trainer_of(losses, max_epochs=1, limit_val_batches=0).fit(module, data)
    assert len(losses.values) == 12
    assert sum(losses.values[-3:]) < 0.8 * sum(losses.values[:3])


def test_module_runs_in_bf16_under_trainer(trained_parts):
    module, data = trained_parts
    seen = set()
    linear = module.model.get_base_model().model.layers[0].self_attn.o_proj
    linear.register_forward_hook(lambda m, inputs, output: seen.add(output.dtype))
    module.on_train_start = seen.clear  # the packing check before it runs outside autocast
    trainer_of(max_steps=1, limit_val_batches=0, precision="bf16-mixed").fit(module, data)
    assert seen == {torch.bfloat16}
