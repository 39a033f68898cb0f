"""What users would take instead: a bare loop with PEFT, perhaps compiled, and a Hugging Face Trainer per client."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.gpu_sections.bench import RATE, SEED, Bench, Loaded
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.packing import epoch_order
from fl_lightning.modeling.lora import collect_lora_state, load_lora_state
from fl_lightning.seeding import derive_seed


def padded(examples: list[Any], pad: int, multiple: int = 1) -> dict[str, torch.Tensor]:
    """A batch padded on the right, to a multiple of some tokens, with -100 where nothing is to be learned."""
    longest = -(-max(map(len, examples)) // multiple) * multiple
    ids = torch.full((len(examples), longest), pad)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, e in enumerate(examples):
        ids[row, : len(e)], mask[row, : len(e)] = e.ids, 1
        labels[row, : len(e)] = e.ids.masked_fill(~e.supervised, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class BareLoop:
    """One client after another: padded batches, PEFT's layers, full logits, clip_grad_norm_, AdamW.

    Args:
        compiled: whether the decoder's layers are compiled, for batches padded to multiples of 64 tokens.
    """

    def __init__(self, bench: Bench, loaded: Loaded, compiled: bool = False) -> None:
        self.bench, self.loaded, self.compiled, self.steps = bench, loaded, compiled, 0
        self.model = loaded.module.model
        base = self.model.get_base_model()
        base.set_attn_implementation("sdpa")
        if compiled:
            for layer in base.model.layers:
                layer.compile(dynamic=True, backend="inductor" if bench.is_gpu else "aot_eager")

    def run(self, data: Mapping[str, ClientData], batch_size: int) -> None:
        model, bench = self.model, self.bench
        self.steps = 0
        for client_id, client in data.items():
            load_lora_state(model, self.loaded.start)
            model.train()
            parameters = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=bench.is_gpu)
            for batch in epoch_order(len(client.train), batch_size, derive_seed(SEED, "order", 1, client_id, 0)):
                rows = padded(
                    [client.train[i] for i in batch], self.loaded.tokenizer.pad_token_id, 64 if self.compiled else 1
                )
                with torch.autocast(bench.device, torch.bfloat16, enabled=bench.is_gpu):
                    loss = model(**{k: v.to(bench.device) for k, v in rows.items()}).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                self.steps += 1
            collect_lora_state(model)


def trainer_per_client(bench: Bench, loaded: Loaded, data: Mapping[str, ClientData], batch_size: int) -> int:
    """One `transformers.Trainer` for each client, as OpenFedLLM and Shepherd do; the number of steps."""
    from transformers import Trainer, TrainingArguments

    logging.getLogger("transformers").setLevel(logging.ERROR)
    model, pad, steps = loaded.module.model, loaded.tokenizer.pad_token_id, 0
    for client in data.values():
        load_lora_state(model, loaded.start)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                num_train_epochs=1,
                learning_rate=RATE,
                weight_decay=0.0,
                lr_scheduler_type="constant",
                bf16=bench.is_gpu,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=not bench.is_gpu,
                logging_strategy="no",
            )
            dataset: Any = list(client.train)
            trainer = Trainer(
                model=model, args=arguments, train_dataset=dataset, data_collator=lambda rows: padded(rows, pad)
            )
            trainer.train()
            steps += trainer.state.global_step
        collect_lora_state(model)
    return steps
