"""The peers of `peers.py`: a Hugging Face Trainer per client, alone and inside Flower's simulation.

    python -m benchmarks.systems.peers_flower {trainer,flower} WORK [--rounds 1] [--clients-at-once 1]

Not to be called by hand: `peers.py` fills the folder WORK and reads `WORK/result.json`. It needs torch, transformers,
peft and accelerate; flwr[simulation] only for Flower, whose virtual environment does not hold this package.

The work of a client is that of OpenFedLLM, Shepherd and the FlowerTune LLM template: load the received adapter into a
PEFT model, make TrainingArguments and a Trainer, train, take the adapter's state. Records come in the order in which
this package's own clients visit them, so that all contestants see the same batches.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

State = dict[str, torch.Tensor]


def load_model(plan: dict[str, Any]) -> Any:
    """The base with a fresh adapter; its values are overwritten by the state that a client receives."""
    base = AutoModelForCausalLM.from_pretrained(plan["base"], dtype=torch.float32)
    return get_peft_model(base, LoraConfig(**plan["lora"], task_type="CAUSAL_LM"))


def load_records(work: Path, client: int, plan: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """A client's records in training order, labels -100 outside of the response."""
    examples = torch.load(work / f"{client}.pt", weights_only=True)
    ordered = [examples[i] for i in plan["orders"][client]]
    return [{"input_ids": ids, "labels": ids.masked_fill(~marks, -100)} for ids, marks in ordered]


def fit(model: Any, start: State, records: list[dict[str, torch.Tensor]], plan: dict[str, Any]) -> tuple[State, float]:
    """One client's local epoch: the state after it and the mean loss of its steps."""
    set_peft_model_state_dict(model, start)
    arguments = TrainingArguments(
        output_dir=plan["scratch"],
        num_train_epochs=1,
        per_device_train_batch_size=plan["batch_size"],
        learning_rate=plan["rate"],
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=plan["seed"],
    )
    pad = torch.nn.utils.rnn.pad_sequence

    def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = [record["input_ids"] for record in batch]
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=plan["pad"]),
            "attention_mask": pad([torch.ones_like(i) for i in ids], batch_first=True),
            "labels": pad([record["labels"] for record in batch], batch_first=True, padding_value=-100),
        }

    trainer = Trainer(model=model, args=arguments, train_dataset=records, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    loss = trainer.train().training_loss
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().clone() for name, tensor in state.items()}, loss


def trainer_round(
    model: Any, departments: dict[str, State], records: list[list[dict[str, torch.Tensor]]], plan: dict[str, Any]
) -> tuple[dict[str, State], float]:
    """A round as OpenFedLLM does it: one model, one Trainer a client, then the weighted means; and the mean loss."""
    fits = [fit(model, departments[d], r, plan) for d, r in zip(plan["departments"], records, strict=True)]
    means = {}
    for department in departments:
        own = [k for k, d in enumerate(plan["departments"]) if d == department]
        total = sum(len(records[k]) for k in own)
        means[department] = {
            name: sum(fits[k][0][name] * (len(records[k]) / total) for k in own) for name in departments[department]
        }
    return means, sum(f[1] * len(r) for f, r in zip(fits, records, strict=True)) / sum(map(len, records))


def trainer_alone(work: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """One round in a process of its own."""
    torch.set_num_threads(plan["threads"])
    start = torch.load(work / "start.pt", weights_only=True)
    records = [load_records(work, k, plan) for k in range(len(plan["departments"]))]
    _, loss = trainer_round(load_model(plan), dict.fromkeys(plan["departments"], start), records, plan)
    return {"loss": loss}


def flower(work: Path, plan: dict[str, Any], rounds: int, at_once: int) -> dict[str, Any]:
    """Rounds of FedAvg over all clients in Flower's Ray-based simulation: when each ended, and the first one's loss."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client_app, server_app = ClientApp(), ServerApp()
    threads, clients = plan["threads"] // at_once, len(plan["departments"])
    ends: list[float] = []
    outcome: dict[str, Any] = {"ends": ends}

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        records = load_records(work, int(context.node_config["partition-id"]), plan)
        model = load_model(plan)  # in every call, as the template does
        state, loss = fit(model, message.content["arrays"].to_torch_state_dict(), records, plan)
        metrics = MetricRecord({"train_loss": loss, "num-examples": len(records)})
        return Message(content=RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        def note_the_time(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            ends.append(time.perf_counter())
            return MetricRecord()

        result = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients).start(
            grid=grid,
            initial_arrays=ArrayRecord(torch.load(work / "start.pt", weights_only=True)),
            num_rounds=rounds,
            train_config=ConfigRecord(),
            evaluate_fn=note_the_time,
        )
        outcome["loss"] = result.train_metrics_clientapp[1]["train_loss"]

    run_simulation(
        server_app,
        client_app,
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": threads, "num_gpus": 0.0},
            "init_args": {
                "num_cpus": plan["threads"],
                "num_gpus": 0,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": str(work / "ray"),
            },
        },
    )
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contestant", choices=("trainer", "flower"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--clients-at-once", type=int, default=1)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    plan = json.loads((args.work / "plan.json").read_text())
    set_seed(plan["seed"])
    if args.contestant == "trainer":
        result = trainer_alone(args.work, plan)
    else:
        result = flower(args.work, plan, args.rounds, args.clients_at_once)
    (args.work / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
