"""Estimate the memory that a run needs from its config, before anything is loaded.

With T tokens in a step (all micro-batches of a cohort), L layers, hidden size h, key/value size v, MLP size m,
vocabulary V, P trained parameters of one adapter, K clients at once, and b bytes per number in the computation:

    base         bytes of its weights; in 4-bit 0.5 per parameter, and 4 for every 64 parameters of its linear layers
    adapters     K · P · 16: factor, gradient and AdamW's two moments, all fp32
    activations  T · (L · (8 h + b · (2 h + 2 v + 3 m)) + (b + 1) Σ in): two norms, which compute in fp32; query,
                 output, key, value; gate, its activation, up; and for each LoRA layer its input after dropout, with
                 the mask in bytes
    head         for each logit of a chunk 8 bytes, in fp32 its value and the logarithm that becomes its gradient, and
                 in 16 bits 2 more; and T · RESPONSE_SHARE · h · 2 b: input of the head and its gradient
    margin       libraries and allocator

With gradient checkpointing each layer keeps its input, T · b · L · h, and one at a time the rest, a share of 1 / L.

The frozen base has no gradients and no moments, its linear layers save no inputs, and attention saves no scores. The
formula of activations follows Korthikanti et al. 2022 (arXiv 2205.05198), without the terms that a frozen base does not
have.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fl_lightning import bundled
from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError
from fl_lightning.modeling.head_loss import CHUNK_LOGITS
from fl_lightning.training.cohorts import row_tokens

RESPONSE_SHARE = 0.5
"""Assumed share of response tokens; ``inspect`` shows the real one of a data folder."""
MARGIN = {"cpu": 700 * 2**20, "cuda": 1200 * 2**20}
"""Bytes. CPU: a process with the libraries loaded, as measured. CUDA: context and fragmentation, as estimated."""
MIN_RECORD_TOKENS = 16
"""Tokens of the shortest records; limits the number of clients whose batches fit into a step."""

_QWEN = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "tie_word_embeddings": False,
}
KNOWN_BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen1.5-1.8B": ("qwen2", _QWEN),
    "Qwen/Qwen1.5-1.8B-Chat": ("qwen2", _QWEN),
}
"""{Hub id: (architecture, its config.json)} of bases that need not be on this machine."""


@dataclass(frozen=True)
class BaseSizes:
    """Sizes of a base model, on which its memory depends.

    Attributes:
        parameters: number of all parameters.
        linear: number of those that 4-bit quantizes.
        adapter: number of trained parameters of one adapter.
        inputs: sum of the input sizes of all LoRA layers.
        layers: number of layers.
        hidden: hidden size.
        key_value: size of keys (and of values) of a token.
        mlp: size of the MLP.
        vocabulary: number of tokens.
    """

    parameters: int
    linear: int
    adapter: int
    inputs: int
    layers: int
    hidden: int
    key_value: int
    mlp: int
    vocabulary: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Upper estimates in bytes by use, and the tokens and clients of a step on which they are based."""

    base: int
    adapters: int
    activations: int
    head: int
    margin: int
    step_tokens: int
    clients_at_once: int

    @property
    def total(self) -> int:
        """All bytes together."""
        return self.base + self.adapters + self.activations + self.head + self.margin

    def as_json(self) -> dict[str, int]:
        """Plain values, including the total."""
        return {**asdict(self), "total": self.total}


def base_sizes(config: RunConfig) -> BaseSizes:
    """The sizes of a config's base, from its config.json; nothing is downloaded and no weight is read.

    Raises:
        InputError: if the base is neither on this machine nor in `KNOWN_BASES`, or has none of the target modules.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from fl_lightning.modeling.target_modules import expand_targets

    base_config = _base_config(config.model.name_or_path, config.model.revision)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(base_config)
    except Exception as error:  # transformers raises many types of errors for an invalid config.json
        raise InputError(
            f"model.name_or_path: expected a config.json of a causal LM, got one without a model ({str(error)[:200]})"
        ) from error
    linear = adapter = inputs = 0
    targets, rank = expand_targets(model, config.lora.target_modules), config.lora.r
    for name, module in model.named_modules():
        shape: Any = getattr(getattr(module, "weight", None), "shape", ())
        if type(module).__name__ not in ("Linear", "Conv1D"):
            continue
        linear += 0 if name.rsplit(".", 1)[-1] in ("lm_head", "embed_out") else shape.numel()
        if any(f".{name}".endswith(f".{target}") for target in targets):
            adapter += rank * sum(shape)
            inputs += shape[0] if type(module).__name__ == "Conv1D" else shape[1]
    if not adapter:
        raise InputError(f"lora.target_modules: expected names of linear layers of the base, got {targets}")
    return BaseSizes(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=linear,
        adapter=adapter,
        inputs=inputs,
        **layer_sizes(base_config),
    )


def layer_sizes(config: Any) -> dict[str, int]:
    """The sizes of the layers from the model's config."""
    text = config.get_text_config()
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    head_size = int(getattr(text, "head_dim", None) or hidden // heads)
    mlp = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
    return {
        "layers": int(text.num_hidden_layers),
        "hidden": hidden,
        "key_value": head_size * int(getattr(text, "num_key_value_heads", None) or heads),
        "mlp": int(mlp),
        "vocabulary": int(text.vocab_size),
    }


def _base_config(name: str, revision: str | None) -> Any:
    """The base model's config of transformers."""
    from transformers import AutoConfig

    path = bundled.resolve(name)
    is_gguf = path.suffix == ".gguf"
    source, options = (str(path.parent), {"gguf_file": path.name}) if is_gguf else (str(path), {})
    is_local = path.exists()
    try:
        return AutoConfig.from_pretrained(
            source if is_local else name,
            local_files_only=True,
            revision=None if is_local else revision,
            **options,
        )
    except Exception as error:  # as above
        if name in KNOWN_BASES:
            architecture, values = KNOWN_BASES[name]
            return AutoConfig.for_model(architecture, **values)
        raise InputError(
            f"model.name_or_path: expected a local folder, a base in the Hub's cache, or one of "
            f"{', '.join(KNOWN_BASES)}, got {name}, whose config.json is not on this machine; download it first"
        ) from error


def estimate_memory(
    config: RunConfig,
    base: BaseSizes,
    *,
    device: str,
    precision: str,
    num_clients: int,
    card_bytes: int | None = None,
) -> MemoryEstimate:
    """The memory that one process of a run needs at most.

    Args:
        config: of the run.
        base: see `base_sizes`.
        device: cpu or cuda.
        precision: fp32, bf16 or fp16.
        num_clients: of all departments together.
        card_bytes: memory of the GPU. By it, or by ``fabric.memory_limit_mb`` if that is less, ``clients_at_once:
            auto`` limits a step; None sets no limit.

    Example:
        >>> tiny = BaseSizes(1000, 800, 10, 8, layers=1, hidden=4, key_value=4, mlp=8, vocabulary=16)
        >>> estimate_memory(RunConfig(), tiny, device="cpu", precision="fp32", num_clients=2).adapters
        320
    """
    kind = "cuda" if device == "cuda" else "cpu"
    # bf16-mixed on a CPU keeps the weights in fp32, see fl_lightning.training.device.
    stored_bytes = 4 if device != "cuda" or precision == "fp32" else 2
    computed_bytes = 4 if precision == "fp32" else 2
    training = config.training
    weights = base.parameters * stored_bytes
    if config.model.load_in_4bit:
        weights = (base.parameters - base.linear) * stored_bytes + base.linear // 2 + base.linear * 4 // 64
    per_token = token_bytes(base, computed_bytes, training.gradient_checkpointing)
    client_tokens = training.batch_size * config.data.max_length
    if config.fabric.memory_limit_mb is not None and kind == "cuda":
        limit = config.fabric.memory_limit_mb * 2**20
        card_bytes = limit if card_bytes is None else min(card_bytes, limit)
    if training.clients_at_once == "auto":
        fixed_bytes = weights + MARGIN[kind] + head_bytes(CHUNK_LOGITS[kind], computed_bytes)
        max_tokens = row_tokens(kind, per_token, fixed_bytes, card_bytes)
        at_once = max(1, min(num_clients, max_tokens // (MIN_RECORD_TOKENS * training.batch_size)))
        tokens = max(client_tokens, min(max_tokens, at_once * client_tokens))
    else:
        at_once = min(num_clients, training.clients_at_once)
        tokens = at_once * client_tokens
    targets = int(tokens * RESPONSE_SHARE)
    return MemoryEstimate(
        base=weights,
        adapters=at_once * base.adapter * 16,
        activations=tokens * per_token,
        head=head_bytes(min(targets * base.vocabulary, CHUNK_LOGITS[kind]), computed_bytes)
        + targets * base.hidden * 2 * computed_bytes,
        margin=MARGIN[kind],
        step_tokens=tokens,
        clients_at_once=at_once,
    )


def token_bytes(base: BaseSizes, computed_bytes: int, recompute: bool = False) -> int:
    """Bytes of a token's activations.

    Args:
        base: sizes of the model.
        computed_bytes: of a number in the computation.
        recompute: whether layers run again in the backward pass (``gradient_checkpointing``).
    """
    per_layer = 8 * base.hidden + computed_bytes * (2 * base.hidden + 2 * base.key_value + 3 * base.mlp)
    whole = base.layers * per_layer + (computed_bytes + 1) * base.inputs
    return computed_bytes * base.layers * base.hidden + whole // base.layers if recompute else whole


def head_bytes(logits: int, computed_bytes: int) -> int:
    """Bytes of the logits that exist at once, see above.

    Args:
        logits: number of them, in a chunk.
        computed_bytes: of a number in the computation.
    """
    return (8 if computed_bytes == 4 else 8 + computed_bytes) * logits


def card_memory(device: str) -> int | None:
    """Bytes that a GPU has, used or free; None for other devices."""
    if device != "cuda":
        return None
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def free_memory(device: str) -> int | None:
    """Free bytes of a GPU, or of this machine's memory within the cgroup's limit.

    Returns:
        None if the system does not report them.
    """
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
    return free
