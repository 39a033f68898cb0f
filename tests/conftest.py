"""Fixtures shared by all tests: everything offline, on one thread, on models that train in milliseconds."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Of the processes that tests start, too: threads of several tests at once would wait for each other. Whatever was set:
# forked processes compute on one thread, and a spawned one with more has other last bits.
os.environ["OMP_NUM_THREADS"] = "1"

import copy
import gc
import json
import logging
import random

import pytest


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may not be installed
def pytest_xdist_auto_num_workers():
    """Worker processes for ``-n auto``: two more than cores, since tests of servers mostly wait."""
    return (os.cpu_count() or 1) + 2


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Collect no garbage while the libraries are imported and tests are collected, nor look through these later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items):
    """With several workers, begin with long tests: none is left with one when the others have finished."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish(session):
    """Stop if pytest-xdist does not keep groups together: what a group shares would be made in every worker."""
    groups = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if session.config.getoption("loadgroup", False) and any("@" not in item.nodeid for item in groups):
        raise pytest.UsageError("expected groups of tests in one worker (--dist loadgroup), got a pytest without them")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def loaded_tiny_base():
    """(model, tokenizer) of the bundled base, loaded once: read it, never change it."""
    import torch

    from fl_lightning.config import ModelConfig
    from fl_lightning.modeling.base_model import load_base_model

    return load_base_model(ModelConfig(), dtype=torch.float32)


@pytest.fixture
def tiny_base(loaded_tiny_base):
    """A fresh (model, tokenizer) that the test may change."""
    return copy.deepcopy(loaded_tiny_base[0]), copy.deepcopy(loaded_tiny_base[1])


@pytest.fixture(scope="session")
def tokenizer(loaded_tiny_base):
    """The bundled tokenizer: read it, never change it."""
    return loaded_tiny_base[1]


@pytest.fixture(scope="session")
def micro_base(tmp_path_factory):
    """The folder of a random base with the bundled tokenizer, for runs whose answers nobody reads: it is read only."""
    from micro_base import write_micro_base
    from shared_folder import make_once

    return str(make_once(tmp_path_factory, "micro_base", write_micro_base))


def _micro(kind: str, vocabulary: int = 4096, dropout: bool = False):
    import torch
    import transformers as hf

    small = {"vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    ends = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        if kind == "qwen":
            model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**small, **heads, **ends, initializer_range=0.2))
        elif kind == "llama":
            model = hf.LlamaForCausalLM(hf.LlamaConfig(**small, **heads, **ends, initializer_range=0.2))
        elif kind == "stablelm":
            model = hf.StableLmForCausalLM(hf.StableLmConfig(**small, **heads, **ends, initializer_range=0.2))
        elif kind == "bloom":
            sizes = {"vocab_size": vocabulary, "hidden_size": 32, "n_layer": 2, "n_head": 4}
            model = hf.BloomForCausalLM(hf.BloomConfig(**sizes, **ends, initializer_range=0.2))
        elif kind == "mamba":
            sizes = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
            model = hf.MambaForCausalLM(hf.MambaConfig(**sizes, **ends, initializer_range=0.2))
        else:
            sizes = {"vocab_size": vocabulary, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
            off = {} if dropout else {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
            model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **off, **ends, initializer_range=0.2))
    return model.requires_grad_(False).eval()


@pytest.fixture
def micro_model():
    """Factory of random models by kind (qwen, llama, gpt2, stablelm, bloom, mamba): the same weights at every call."""
    return _micro


@pytest.fixture
def micro_qwen():
    """A random Qwen2 with grouped queries: hidden 32, 2 layers, 4 heads, 2 key/value heads."""
    return _micro("qwen")


@pytest.fixture
def make_examples():
    """Factory of ragged random token sequences, about half of each supervised."""
    import torch

    from fl_lightning.data.tokenization import Example

    def make(count: int, seed: int = 0, low: int = 4, high: int = 14, vocabulary: int = 4096):
        draw = random.Random(seed)
        examples = []
        for _ in range(count):
            length = draw.randint(low, high)
            ids = torch.tensor([draw.randrange(5, vocabulary) for _ in range(length)])
            supervised = torch.arange(length) >= draw.randint(1, length - 1)
            examples.append(Example(ids, supervised))
        return examples

    return make


@pytest.fixture
def random_state():
    """Factory of adapter states for a PEFT model in which B is not zero, so that both factors have gradients."""
    import torch

    from fl_lightning.modeling.lora import collect_lora_state

    def make(model, seed: int = 0, scale: float = 0.2):
        generator = torch.Generator().manual_seed(seed)
        return {n: torch.randn(t.shape, generator=generator) * scale for n, t in collect_lora_state(model).items()}

    return make


@pytest.fixture
def write_jsonl():
    """Factory that writes records as JSONL, making folders on the way."""

    def write(path, records):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return write


@pytest.fixture
def log_messages():
    """Messages of the package's log, whatever handlers an earlier test left behind."""
    messages = []

    class Collect(logging.Handler):
        def emit(self, record):
            messages.append(f"{record.levelname} {record.getMessage()}")

    logger, handler = logging.getLogger("fl_lightning"), Collect()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="session")
def cut_departments():
    """Function that fills a folder with the bundled departments, cut to so many clients and records of each split."""
    from fl_lightning import bundled

    def cut(folder, clients, train, evaluation):
        for source in sorted(bundled.resolve("bundled:departments").glob(f"*/client_[0-{clients - 1}]")):
            place = folder / source.relative_to(source.parents[1])
            place.mkdir(parents=True)
            for split, count in (("train", train), ("eval", evaluation)):
                lines = (source / f"{split}.jsonl").read_text().splitlines(keepends=True)
                (place / f"{split}.jsonl").write_text("".join(lines[:count]))
        return folder

    return cut


@pytest.fixture(scope="session")
def adapter_run(loaded_tiny_base, tmp_path_factory):
    """A run folder with adapters of two departments and a client on the bundled base, none of them trained: read it."""
    import torch

    from fl_lightning.config.parsing import parse_config, to_yaml
    from fl_lightning.modeling.lora import collect_lora_state, create_lora_model, export_lora_adapter

    folder = tmp_path_factory.mktemp("served") / "version_0"
    folder.mkdir()
    config = parse_config(["--device-map", "cpu"])
    (folder / "config.yaml").write_text(to_yaml(config))
    lora = config.lora
    model = create_lora_model(
        copy.deepcopy(loaded_tiny_base[0]), lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules
    )
    places = {"hr": "adapters/hr", "finance": "adapters/finance", "hr/client_0": "client_exports/hr/round_1_client_0"}
    for seed, place in enumerate(places.values()):
        generator = torch.Generator().manual_seed(seed)
        state = {n: torch.randn(t.shape, generator=generator) * 0.2 for n, t in collect_lora_state(model).items()}
        export_lora_adapter(model, folder / place, state)
    (folder / "dept_lora_federated.json").write_text(json.dumps({name: places[name] for name in ("hr", "finance")}))
    rounds = {"1": {"hr": {"client_0": places["hr/client_0"]}}}
    (folder / "client_lora_federated.json").write_text(json.dumps({"rounds": rounds}))
    return folder
