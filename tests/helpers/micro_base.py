"""A base model on disk for whole runs in tests: the bundled tokenizer and few, random weights."""

from __future__ import annotations

import shutil

from fl_lightning import bundled

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "initializer_range": 0.2}


def write_micro_base(folder):
    """Fill a folder with a Qwen2 of three layers and four heads: the same weights at every call."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = bundled.resolve("bundled:tiny_base")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors", "*.py*"), dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(source)
    for name, value in SIZES.items():
        setattr(config, name, value)
    config.layer_types = config.layer_types[: config.num_hidden_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder
