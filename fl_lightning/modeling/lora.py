"""LoRA adapters of a PEFT model: create, read, write, export, load."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from fl_lightning.errors import InputError
from fl_lightning.linalg.adapter_algebra import pad_to_common_rank, resize_like
from fl_lightning.modeling.adapter_config import read_adapter_config, write_adapter_config
from fl_lightning.modeling.target_modules import expand_targets
from fl_lightning.state import LoraState, is_lora_a, problem_with, snapshot
from fl_lightning.storage.files import atomic_folder
from fl_lightning.storage.tensors import read_state, write_state

ADAPTER = "default"


def create_lora_model(
    model: Any,
    r: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.05,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    *,
    use_rslora: bool = False,
    seed: int = 0,
) -> PeftModel:
    """Wrap a causal LM with LoRA adapters: A drawn from `seed` (Kaiming uniform), B = 0.

    Args:
        model: a transformers causal language model; PEFT changes it in place.
        r: rank.
        lora_alpha: scale; the update is ``(lora_alpha / r) B A x``.
        lora_dropout: dropout on the input of A.
        target_modules: of the linear layers: names, regular expressions for whole names, or ``all-linear``.
        use_rslora: scale by ``lora_alpha / sqrt(r)`` instead (Kalajdzievski 2023, arXiv 2312.03732).
        seed: of A₀; the same seed always gives the same A₀, whatever was drawn before.

    Returns:
        The PEFT model; only A and B require gradients.

    Raises:
        InputError: if a target matches no layer, or one that cannot get an adapter.
    """
    config = PeftLoraConfig(
        r=r,
        lora_alpha=int(lora_alpha) if lora_alpha == int(lora_alpha) else lora_alpha,  # else 16 would be written as 16.0
        lora_dropout=lora_dropout,
        target_modules=expand_targets(model, target_modules),
        use_rslora=use_rslora,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise InputError(f"lora.target_modules: {' '.join(str(error).split())[:300]}; choose others") from error
        except AttributeError as error:  # bitsandbytes' layers with plain weights
            raise InputError(
                "model.name_or_path: PEFT cannot adapt the base model; if its config.json has a quantization_config "
                f"and its weights are not quantized, remove that ({' '.join(str(error).split())[:200]})"
            ) from error
        except RuntimeError as error:
            raise InputError(
                f"lora.r: not enough memory for rank {r} ({str(error)[:80]}); choose a smaller one"
            ) from error


def collect_lora_state(model: PeftModel) -> LoraState:
    """A snapshot of the adapter: {PEFT's parameter name: detached fp32 CPU copy}, sorted by name.

    Args:
        model: from `create_lora_model` or `load_adapter_model`.
    """
    return snapshot(get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False))


def collect_lora_parameter_names(model: PeftModel) -> list[str]:
    """Names of the adapter's parameters, as in `collect_lora_state`, sorted.

    Args:
        model: from `create_lora_model` or `load_adapter_model`.
    """
    return sorted(get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False))


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """{prefix: layer}, where ``prefix + ".lora_A.weight"`` is the name in a `LoraState`."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and (module.lora_A or module.lora_embedding_A)
    }


def adapter_scaling(model: PeftModel) -> float:
    """lora_alpha / r of the model's adapter (lora_alpha / √r with rsLoRA); the same in all layers."""
    return float(next(iter(lora_layers(model).values())).scaling[ADAPTER])


@torch.no_grad()
def load_lora_state(model: PeftModel, state: Mapping[str, torch.Tensor]) -> None:
    """Copy a state into the model's adapter, in place.

    Args:
        model: its adapter is overwritten.
        state: with the names and shapes of `collect_lora_state`.

    Raises:
        ValueError: if names or shapes differ, or a value is not finite.
    """
    live = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    if problem := problem_with(state, live):
        raise ValueError(f"adapter state does not fit the model: {problem}")
    for name, tensor in live.items():  # these share memory with the parameters
        tensor.copy_(state[name])


def export_lora_adapter(model: PeftModel, folder: str | Path, state: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write an adapter in PEFT's format (``adapter_config.json``, ``adapter_model.safetensors``), atomically.

    Args:
        model: gives the adapter's config, and the tensors if `state` is None.
        folder: where to write; an existing adapter is replaced.
        state: the tensors to write, at the scale of the model's adapter. If their rank differs from the model's,
            ``r`` and ``lora_alpha`` are written accordingly.

    Returns:
        The folder.

    Example:
        >>> from fl_lightning import create_lora_model, load_base_model, export_lora_adapter, ModelConfig
        >>> import tempfile, torch
        >>> base, _ = load_base_model(ModelConfig(), dtype=torch.float32)
        >>> sorted(p.name for p in export_lora_adapter(create_lora_model(base), tempfile.mkdtemp() + "/hr").iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    folder = Path(folder)
    tensors = collect_lora_state(model) if state is None else snapshot(pad_to_common_rank(state))
    with atomic_folder(folder) as temporary:
        config = copy.copy(model.peft_config[ADAPTER])
        rank = next(tensor.shape[0] for name, tensor in tensors.items() if is_lora_a(name))
        if rank != config.r:
            config.lora_alpha *= (rank / config.r) ** (0.5 if config.use_rslora else 1)
            config.r = rank
        write_adapter_config(config, temporary)
        write_state(temporary / "adapter_model.safetensors", tensors)
    return folder


def read_lora_adapter(
    folder: str | Path, like: Mapping[str, torch.Tensor] | None = None, *, any_rank: bool = False
) -> LoraState:
    """The tensors of an adapter folder in fp32; only safetensors are read, after a check of their header.

    Args:
        folder: in PEFT's format.
        like: a state with the names and shapes that the adapter must have, such as a new one of the same base.
        any_rank: whether its ranks may differ from those of `like`.

    Raises:
        InputError: if there is no adapter, the file is incomplete, names or shapes differ from `like`, or a value is
            not finite.
    """
    path = Path(folder) / "adapter_model.safetensors"
    state = snapshot(read_state(path, None if any_rank else like))
    if problem := problem_with(state, resize_like(state, like) if any_rank and like else state):
        raise InputError(f"{path}: {problem}")
    return state


def load_adapter_model(model: Any, folder: str | Path) -> PeftModel:
    """A base model with an adapter from a folder, ready for inference.

    Args:
        model: the base model, without adapters.
        folder: written by `export_lora_adapter`; only safetensors are read.

    Raises:
        InputError: if the folder has no adapter that fits the base model.
    """
    folder = Path(folder)
    read_adapter_config(folder)  # PEFT ignores keys that it does not know
    tensors = read_lora_adapter(folder)
    try:
        loaded = PeftModel.from_pretrained(model, str(folder), use_safetensors=True)
        if problem := problem_with(tensors, collect_lora_state(loaded)):  # PEFT only warns about missing tensors
            raise ValueError(problem)
        return loaded
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise InputError(
            f"{folder}: the adapter does not fit the base model ({' '.join(str(error).split())[:300]})"
        ) from error
