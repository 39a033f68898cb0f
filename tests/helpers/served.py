"""A run folder made by hand, a server of it in a process of its own, and what each adapter says alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
import yaml
from forked import Forked

from fl_lightning.config import ModelConfig, RunConfig
from fl_lightning.data.records import Turn
from fl_lightning.data.tokenization import encode_prompt
from fl_lightning.launch import reserve_port
from fl_lightning.modeling.base_model import load_base_model
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.generation.generate import generate
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model, export_lora_adapter, load_lora_state
from fl_lightning.storage.run_folder import create_run_folder

SHARED = ("finance", "hr", "sales")
CLIENTS = ("hr/client_0", "hr/client_1")
MIXTURE = "hr/client_1+"
LEVELS = {"own": (0.4, "hr/client_1"), "department": (0.35, "hr"), "root": (0.25, "sales")}
"""{level of the mixture: its weight, and the model whose adapter it has}."""


class MadeRun:
    """A run whose adapters are random: three departments, two clients, and a mixture of three of these for one."""

    def __init__(self, root):
        self.folder = create_run_folder(root, yaml.safe_dump(RunConfig().to_dict()))
        base, self.tokenizer = load_base_model(ModelConfig(), dtype=torch.float32)
        self.model = create_lora_model(base).eval()
        self.states = {}
        for seed, name in enumerate((*SHARED, *CLIENTS)):
            self.put(name, seed)
        places = {name: f"adapters/{name}" for name in SHARED}
        clients = {client: f"client_exports/{client}" for client in CLIENTS}
        rounds = {"1": {"hr": {client.split("/")[1]: place for client, place in clients.items()}}}
        (self.folder / "dept_lora_federated.json").write_text(json.dumps(places))
        (self.folder / "client_lora_federated.json").write_text(json.dumps({"rounds": rounds}))
        choice = {
            "chosen": "own",
            "weights": {level: weight for level, (weight, _) in LEVELS.items()},
            "adapters": {level: (places | clients)[name] for level, (_, name) in LEVELS.items()},
        }
        personal = {"choose": "mixture", "clients": {MIXTURE.removesuffix("+"): choice}}
        (self.folder / "personal_eval.json").write_text(json.dumps(personal))

    def put(self, name, seed):
        """Give a model another adapter; its state."""
        draw = torch.Generator().manual_seed(seed)
        like = collect_lora_state(self.model)
        self.states[name] = {n: torch.randn(t.shape, generator=draw) * 0.1 for n, t in like.items()}
        place = "adapters" if name in SHARED else "client_exports"
        export_lora_adapter(self.model, self.folder / place / name, self.states[name])
        return self.states[name]

    def says(self, state, text, tokens):
        """The greedy answer of an adapter that is alone on the model."""
        cohort = LoraCohort(self.model)
        cohort.load([state], "cpu")
        prompt = torch.tensor(encode_prompt([Turn("user", text)], self.tokenizer))
        with cohort.attached():
            cohort.set_single_client()
            (ids,) = generate(self.model, [prompt], max_new_tokens=tokens, ends=[self.tokenizer.eos_token_id])
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @torch.no_grad()
    def mixture_says(self, text, tokens):
        """The greedy answer of the mixture: PEFT's adapters one at a time, probabilities mixed by hand, no cache."""
        prompt = encode_prompt([Turn("user", text)], self.tokenizer)
        ids = list(prompt)
        while len(ids) < len(prompt) + tokens:
            probs = 0
            for weight, name in LEVELS.values():
                load_lora_state(self.model, self.states[name])
                logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                probs = probs + weight * logits.double().softmax(-1)
            if (token := int(probs.argmax())) == self.tokenizer.eos_token_id:
                break
            ids.append(token)
        return self.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True, clean_up_tokenization_spaces=False)


FORK = """
import multiprocessing, types, litserve.server
litserve.server.mp = types.SimpleNamespace(**vars(multiprocessing))
litserve.server.mp.get_context = lambda _: multiprocessing.get_context("fork")
"""


class Server(Forked):
    """``serve`` in a session of its own, so that `processes_of` finds all its processes.

    Args:
        run_folder: the run.
        *options: of the command.
        fork: fork the worker process, which saves it ten seconds of imports; LitServe spawns it.
        **environment: see `Forked`.
    """

    def __init__(self, run_folder, *options, fork=False, **environment):
        arguments = ["serve", "--run", str(run_folder), *map(str, options)]
        code = f"import os, sys; os.setsid(); from fl_lightning.cli import main; sys.exit(main({arguments!r}))"
        super().__init__((FORK if fork else "") + code, run_folder.parent, **environment)

    def stop(self):
        """SIGTERM, and SIGKILL for all its processes if that does not help."""
        if self.process.is_alive():
            self.send_signal(signal.SIGTERM)
            self.process.join(60)
        if self.process.is_alive():
            os.killpg(self.pid, signal.SIGKILL)


@contextmanager
def serving(run_folder, *options, fork=False, **environment):
    """(address, server) of a server that is ready; it is stopped in the end."""
    holder, port = reserve_port()
    address = f"http://127.0.0.1:{port}"
    server = Server(run_folder, "--port", port, *options, fork=fork, **environment)
    try:
        until(lambda: not server.process.is_alive() or healthy(address), 240)
        assert server.process.is_alive(), server.output()
        yield address, server
    finally:
        server.stop()
        holder.close()


def healthy(address):
    try:
        return httpx.get(f"{address}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def until(condition, seconds):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def processes_of(session):
    """Processes that are left of a session."""
    found = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True, check=False)
    return found.stdout.split()


def command_of(pid):
    """The command line of a process, as everybody on the machine can read it."""
    return Path(f"/proc/{pid}/cmdline").read_text()
