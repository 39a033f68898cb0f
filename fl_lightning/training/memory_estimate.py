"""How much memory a run will want, worked out from its config before anything is loaded.

With T tokens in a step (of a cohort's micro-batches together), L layers, hidden size h, key/value size v, MLP size m,
vocabulary V, P trained numbers of one adapter, K clients at once, and b bytes of a number in the computation:

    base         bytes of its weights; in 4-bit 0.5 a number and 4 for every 64 numbers of its linear layers
    adapters     K · P · 16: factor, gradient and AdamW's two moments, all fp32
    activations  T · L · b · (2 h + 2 h + 2 v + 3 m + 2 Σ in): two norms; query, output, key, value; gate, its
                 activation, up; and for each LoRA layer its input after dropout with the mask
    head         T · ANSWERED · V · (4 + 2 b): logits, their logarithms in fp32 and a gradient
    margin       what the libraries and the allocator take

The frozen base has no gradients and no moments, and its linear layers keep no inputs; attention keeps no scores. The
formula of activations is that of Korthikanti et al. 2022 (arXiv 2205.05198) without what a frozen base leaves out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fl_lightning import bundled
from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError

ANSWERED = 0.5
"""Share of the tokens taken to be responses; ``inspect`` says what it is for given records."""
MARGIN = {"cpu": 700 * 2**20, "cuda": 1200 * 2**20}
"""A process that has loaded the libraries, as measured; CUDA's context with what its allocator cannot give back, as
estimated."""
SHORTEST = 16
"""Tokens of a record where clients are put together by their tokens: at most so many fit into a step."""
STEP_TOKENS = {"cpu": 1000, "cuda": 16384}
"""As in `fl_lightning.training.local_clients`; a test holds them together."""

_QWEN = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "tie_word_embeddings": False,
}
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen1.5-1.8B": ("qwen2", _QWEN),
    "Qwen/Qwen1.5-1.8B-Chat": ("qwen2", _QWEN),
}
"""{Hub id: (architecture, its config.json)} for bases that are not on this machine."""


@dataclass(frozen=True)
class Sizes:
    """What counts of a base model.

    Attributes:
        parameters: all numbers.
        linear: those that 4-bit quantises.
        adapter: trained numbers of one adapter.
        inputs: input sizes of all LoRA layers added up.
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
class Estimate:
    """Bytes by what they are for, at most; `step_tokens` and `clients_at_once` are what they rest on."""

    base: int
    adapters: int
    activations: int
    head: int
    margin: int
    step_tokens: int
    clients_at_once: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.base + self.adapters + self.activations + self.head + self.margin

    def as_json(self) -> dict[str, int]:
        """Plain values, with the total."""
        return {**asdict(self), "total": self.total}


def sizes(config: RunConfig) -> Sizes:
    """The sizes of a config's base, from its config.json; nothing is downloaded and no weight is read.

    Raises:
        InputError: if the base is not on this machine and not in `KNOWN`, or has no linear layer of the names wanted.
    """
    import torch
    from transformers import AutoModelForCausalLM

    described = _described(config.model.name_or_path, config.model.revision)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(described)
    except Exception as error:  # what an odd config.json makes transformers raise has no end
        raise InputError(
            f"model.name_or_path: its config.json makes no model ({str(error)[:200]}); wanted one"
        ) from error
    linear = adapter = inputs = 0
    targets, rank = set(config.lora.target_modules), config.lora.r
    for name, module in model.named_modules():
        shape: Any = getattr(getattr(module, "weight", None), "shape", ())
        if type(module).__name__ not in ("Linear", "Conv1D"):
            continue
        linear += 0 if name.rsplit(".", 1)[-1] in ("lm_head", "embed_out") else shape.numel()
        if name.rsplit(".", 1)[-1] in targets:
            adapter += rank * sum(shape)
            inputs += shape[0] if type(module).__name__ == "Conv1D" else shape[1]
    if not adapter:
        raise InputError(f"lora.target_modules: got {sorted(targets)}, wanted names of linear layers of the base")
    text = described.get_text_config()
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    head_size = int(getattr(text, "head_dim", None) or hidden // heads)
    mlp = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
    return Sizes(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=linear,
        adapter=adapter,
        inputs=inputs,
        layers=int(text.num_hidden_layers),
        hidden=hidden,
        key_value=head_size * int(getattr(text, "num_key_value_heads", None) or heads),
        mlp=int(mlp),
        vocabulary=int(text.vocab_size),
    )


def _described(name: str, revision: str | None) -> Any:
    """The base's config, as transformers has it."""
    from transformers import AutoConfig

    path = bundled.resolve(name)
    source, more = (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (str(path), {})
    local = path.exists()
    try:
        return AutoConfig.from_pretrained(
            source if local else name, local_files_only=True, revision=None if local else revision, **more
        )
    except Exception as error:  # as above
        if name in KNOWN:
            architecture, values = KNOWN[name]
            return AutoConfig.for_model(architecture, **values)
        raise InputError(
            f"model.name_or_path: no config.json of {name} on this machine, wanted a local folder, a base in the Hub's "
            f"cache, or one of {', '.join(KNOWN)}; download it first"
        ) from error


def estimate(config: RunConfig, base: Sizes, *, device: str, precision: str, clients: int) -> Estimate:
    """The memory that one process of a run will want at most.

    Args:
        config: of the run.
        base: see `sizes`.
        device: cpu or cuda.
        precision: fp32, bf16 or fp16.
        clients: of all departments together.

    Example:
        >>> tiny = Sizes(1000, 800, 10, 8, layers=1, hidden=4, key_value=4, mlp=8, vocabulary=16)
        >>> estimate(RunConfig(), tiny, device="cpu", precision="fp32", clients=2).adapters
        320
    """
    # bf16-mixed on a CPU keeps the weights in fp32, see fl_lightning.training.device.
    stored = 4 if device != "cuda" or precision == "fp32" else 2
    computed = 4 if precision == "fp32" else 2
    training = config.training
    one = training.batch_size * config.data.max_length
    if training.clients_at_once == "auto":
        room = STEP_TOKENS["cuda" if device == "cuda" else "cpu"]
        at_once = max(1, min(clients, room // (SHORTEST * training.batch_size)))
        tokens = max(one, min(room, at_once * one))
    else:
        at_once = min(clients, training.clients_at_once)
        tokens = at_once * one
    weights = base.parameters * stored
    if config.model.load_in_4bit:
        weights = (base.parameters - base.linear) * stored + base.linear // 2 + base.linear * 4 // 64
    a_layer = 4 * base.hidden + 2 * base.key_value + 3 * base.mlp
    return Estimate(
        base=weights,
        adapters=at_once * base.adapter * 16,
        activations=tokens * computed * (base.layers * a_layer + 2 * base.inputs),
        head=int(tokens * ANSWERED) * base.vocabulary * (4 + 2 * computed),
        margin=MARGIN["cuda" if device == "cuda" else "cpu"],
        step_tokens=tokens,
        clients_at_once=at_once,
    )


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device: of a GPU's own memory, or of the machine's within the process's limit.

    Returns:
        None where the system does not tell.
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
