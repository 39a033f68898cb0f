"""What the sections share: the device, its clock and memory, a model of Qwen1.5-1.8B's shape, clients, and fits."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fl_lightning import LoraClientModule, ModelConfig, TrainingConfig, create_lora_model, load_base_model
from fl_lightning.bundled import resolve
from fl_lightning.config import FabricConfig
from fl_lightning.data.client_data import ClientData, load_clients
from fl_lightning.federation.protocol import ClientTask, ClientUpdate
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.state import LoraState
from fl_lightning.training.device import make_fabric
from fl_lightning.training.local_clients import LocalClients
from fl_lightning.training.memory import peak_resident_mib

QWEN = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SEED, RATE = 1234, 2e-4


@dataclass
class Loaded:
    """A model with clients.

    Attributes:
        local: the clients of this package.
        tokenizer: of the model.
        start: the adapter with which every client begins.
        seconds: of the last fit.
        steps: tokens of each step of the last fit.
    """

    local: LocalClients
    module: LoraClientModule
    tokenizer: Any
    start: LoraState
    seconds: float = 0.0
    steps: list[int] = field(default_factory=list)

    @property
    def data(self) -> Mapping[str, ClientData]:
        return self.local.data

    def tokens(self, data: Mapping[str, ClientData] | None = None) -> int:
        return sum(len(e) for c in (data or self.data).values() for e in c.train)

    def cut(self, records: int, clients: int | None = None) -> dict[str, ClientData]:
        """The first records of clients that are spread over the departments."""
        every = max(1, len(self.data) // (clients or len(self.data)))
        ids = list(self.data)[::every][:clients]
        return {i: replace(self.data[i], train=self.data[i].train[:records]) for i in ids}


@dataclass
class Bench:
    """Options of a run of the script.

    Attributes:
        device: cuda or cpu.
        small: whether a model of two layers stands in.
        folder: for files of the sections.
        model_folder: of the model.
        deadline: of `time.monotonic`.
    """

    device: str
    small: bool
    folder: Path
    model_folder: Path
    deadline: float
    started: float = field(default_factory=time.monotonic)

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def say(self, text: object) -> None:
        print(f"[{time.monotonic() - self.started:6.1f}] {text}", flush=True)

    def attempt(self, measure: Callable[[], dict], quiet: bool = False) -> dict:
        """What a measurement returns, or its error; a failure never ends the script."""
        if self.seconds_left() <= 0:
            return {"left out": "no time"}
        try:
            result = measure()
        except Exception as error:
            traceback.print_exc()
            result, quiet = {"error": f"{type(error).__name__}: {str(error)[:400]}"}, False
        if not quiet:
            self.say(result)
        return result

    def sync(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def release(self) -> None:
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def timed(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """(seconds, result) of a call, with everything finished that it has started on the device."""
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.sync()
        started = time.perf_counter()
        result = run()
        self.sync()
        return time.perf_counter() - started, result

    def peak_gb(self) -> float:
        """Peak memory since `timed` began; on a CPU that of the process."""
        peak = torch.cuda.max_memory_allocated() if self.is_gpu else peak_resident_mib() * 2**20
        return round(peak / 1e9, 2)

    def prepare_model(self) -> int:
        """Write the model of random weights unless it is there; its number of parameters."""
        from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

        tokenizer = AutoTokenizer.from_pretrained(resolve("bundled:tiny_base"))
        shape = SMALL if self.small else QWEN
        config = Qwen2Config(
            **shape,
            num_key_value_heads=shape["num_attention_heads"],
            vocab_size=8192 if self.small else 151936,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.device("meta"):
            parameters = sum(p.numel() for p in Qwen2ForCausalLM(config).parameters())
        if not (self.model_folder / "config.json").exists():
            torch.manual_seed(0)
            default_dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.bfloat16)
            try:
                with torch.device(self.device):
                    model = Qwen2ForCausalLM(config)
            finally:
                torch.set_default_dtype(default_dtype)
            tokenizer.save_pretrained(self.model_folder)
            model.save_pretrained(self.model_folder)
        return parameters

    def load(
        self,
        *,
        clients: int = 4,
        records: int = 64,
        precision: str = "auto",
        in_4bit: bool = False,
        batch_size: int = 4,
        name: str | None = None,
        dropout: float = 0.05,
        gradient_checkpointing: bool = False,
    ) -> Loaded:
        """A model with `clients` clients of each bundled department, all of them in their first `records` records."""
        if name is None:
            self.prepare_model()
        accelerator = "cuda" if self.is_gpu else "cpu"
        fabric, dtype = make_fabric(FabricConfig(accelerator=accelerator, precision=precision))
        fabric.launch()
        model_config = ModelConfig(name_or_path=name or str(self.model_folder), load_in_4bit=in_4bit)
        base, tokenizer = load_base_model(model_config, dtype=dtype, device=fabric.device)
        module = LoraClientModule(create_lora_model(base, lora_dropout=dropout, seed=1), learning_rate=RATE)
        if self.small:
            clients, records = min(clients, 1), min(records, 4)
        data = load_clients(
            "bundled:departments", tokenizer, clients_per_dept=clients, max_records=records, max_length=512
        )
        training = TrainingConfig(
            learning_rate=RATE, batch_size=batch_size, gradient_checkpointing=gradient_checkpointing
        )
        start = collect_lora_state(module.model)
        return Loaded(LocalClients(fabric, module, data, training, "auto"), module, tokenizer, start)

    def fit(
        self, loaded: Loaded, data: Mapping[str, ClientData], batch_size: int, at_once: int | str
    ) -> list[ClientUpdate]:
        """Fit every client once from the start; `loaded` keeps seconds and steps."""
        local, steps = loaded.local, []

        def on_step(_: list[str], __: float, tokens: int) -> None:
            steps.append(tokens)

        local.data, local.clients_at_once = data, at_once
        local.training = replace(local.training, batch_size=batch_size)
        local._fitting.training = local.training
        tasks = [ClientTask(client_id, 1, loaded.start, SEED) for client_id in data]
        seconds, updates = self.timed(lambda: list(local.fit(tasks, on_step)))
        loaded.seconds, loaded.steps = seconds, steps
        return updates


def relative_difference(first: list[ClientUpdate], second: list[ClientUpdate], start: LoraState) -> float:
    """Distance between fitted adapters over how far they have moved."""
    pairs = list(zip(first, second, strict=True))
    apart = sum(float((x.state[n] - y.state[n]).double().square().sum()) for x, y in pairs for n in x.state)
    moved = sum(float((x.state[n] - start[n]).double().square().sum()) for x in first for n in x.state)
    return (apart / moved) ** 0.5
