"""Architectures of transformers, each with random weights: the numbers of plain transformers and PEFT.

For each: adapters of two clients in one batch, with the loss of PEFT's model record by record; greedy answers of
`generate`; the merged model. ``pytest -s`` prints the table of docs/models.md.
"""

import shutil

import peft
import pytest
import tokenizers
import torch
import transformers as hf

from fl_lightning.config import ModelConfig
from fl_lightning.data.packing import pack
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import InputError
from fl_lightning.modeling.base_model import load_base_model
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.generation.generate import generate
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model, export_lora_adapter
from fl_lightning.modeling.merging import merge_adapter
from fl_lightning.module import LoraClientModule

VOCABULARY = 256
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 512, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
QV = ["q_proj", "v_proj"]
# {name: (prefix of the classes, config, target modules)}
ARCHITECTURES = {
    "Llama": ("Llama", dict(**GROUPED), QV),
    "Mistral": ("Mistral", dict(**GROUPED, sliding_window=8), QV),
    "Mixtral": ("Mixtral", dict(**GROUPED, num_local_experts=4, num_experts_per_tok=2), QV),
    "Qwen2": ("Qwen2", dict(**GROUPED), QV),
    "Qwen3": ("Qwen3", dict(**GROUPED, head_dim=8), QV),
    "Qwen2Moe": (
        "Qwen2Moe",
        dict(
            **GROUPED,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        ),
        QV,
    ),
    "Qwen3Moe": (
        "Qwen3Moe",
        dict(**GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
        QV,
    ),
    "Qwen3Next": (
        "Qwen3Next",
        dict(
            **GROUPED,
            head_dim=8,
            num_hidden_layers=4,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        QV,
    ),
    "Gemma": ("Gemma", dict(**GROUPED, head_dim=8), QV),
    "Gemma2": ("Gemma2", dict(**GROUPED, head_dim=8, sliding_window=8, query_pre_attn_scalar=8), QV),
    "Gemma3Text": ("Gemma3Text", dict(**GROUPED, head_dim=8, sliding_window=8, query_pre_attn_scalar=8), QV),
    "Phi": ("Phi", dict(**GROUPED), QV),
    "Phi3": ("Phi3", dict(**GROUPED, sliding_window=8), ["qkv_proj"]),
    "GPT2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}, ["c_attn"]),
    "GPTNeo": (
        "GPTNeo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
        QV,
    ),
    "GPTNeoX": ("GPTNeoX", {}, ["query_key_value"]),
    "GPTJ": ("GPTJ", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 4}, QV),
    "GPTBigCode": ("GPTBigCode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}, ["c_attn"]),
    "Starcoder2": ("Starcoder2", dict(**GROUPED, sliding_window=8), QV),
    "Bloom": ("Bloom", {"n_layer": 2, "n_head": 4}, ["query_key_value"]),
    "Falcon": ("Falcon", {"alibi": False}, ["query_key_value"]),
    "FalconAlibi": ("Falcon", {"alibi": True}, ["query_key_value"]),
    "Mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512, "expansion_ratio": 2}, ["Wqkv"]),
    "OPT": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}, QV),
    "StableLm": ("StableLm", dict(**GROUPED), QV),
    "Cohere": ("Cohere", dict(**GROUPED, logit_scale=0.1), QV),
    "Cohere2": ("Cohere2", dict(**GROUPED, sliding_window=8), QV),
    "Olmo": ("Olmo", dict(**GROUPED), QV),
    "Olmo2": ("Olmo2", dict(**GROUPED), QV),
    "Olmo3": ("Olmo3", dict(**GROUPED, sliding_window=8), QV),
    "Olmoe": ("Olmoe", dict(**GROUPED, num_experts=4, num_experts_per_tok=2), QV),
    "Granite": (
        "Granite",
        dict(
            **GROUPED, logits_scaling=2.0, attention_multiplier=0.3, residual_multiplier=0.5, embedding_multiplier=2.0
        ),
        QV,
    ),
    "GraniteMoe": ("GraniteMoe", dict(**GROUPED, num_local_experts=4, num_experts_per_tok=2), QV),
    "GraniteMoeHybrid": (
        "GraniteMoeHybrid",
        dict(
            **GROUPED,
            num_local_experts=4,
            num_experts_per_tok=2,
            shared_intermediate_size=16,
            layer_types=["mamba", "attention"],
            mamba_n_heads=8,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_expand=2,
        ),
        QV,
    ),
    "Nemotron": ("Nemotron", dict(**GROUPED), QV),
    "Persimmon": ("Persimmon", {}, ["query_key_value"]),
    "Glm": ("Glm", dict(**GROUPED, head_dim=8), QV),
    "Glm4": ("Glm4", dict(**GROUPED, head_dim=8), QV),
    "Glm4Moe": (
        "Glm4Moe",
        dict(
            **GROUPED,
            head_dim=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
        ),
        QV,
    ),
    "Ernie4_5": ("Ernie4_5", dict(**GROUPED, head_dim=8), QV),
    "Exaone4": ("Exaone4", dict(**GROUPED, head_dim=8, sliding_window=8), QV),
    "SmolLM3": ("SmolLM3", dict(**GROUPED), QV),
    "Arcee": ("Arcee", dict(**GROUPED), QV),
    "Helium": ("Helium", dict(**GROUPED, head_dim=8), QV),
    "Apertus": ("Apertus", dict(**GROUPED), QV),
    "DeepseekV2": (
        "DeepseekV2",
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
        },
        ["q_b_proj", "kv_b_proj"],
    ),
    "DeepseekV3": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
        },
        ["q_b_proj", "kv_b_proj"],
    ),
    "GptOss": ("GptOss", dict(**GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8), QV),
    "Llama4Text": (
        "Llama4Text",
        dict(
            **GROUPED,
            head_dim=8,
            num_local_experts=2,
            num_experts_per_tok=1,
            attention_chunk_size=8,
            intermediate_size_mlp=32,
        ),
        QV,
    ),
    "MiniMax": ("MiniMax", dict(**GROUPED, head_dim=8, num_local_experts=2, num_experts_per_tok=1, block_size=8), QV),
    "Jamba": (
        "Jamba",
        dict(
            **GROUPED,
            num_experts=2,
            num_experts_per_tok=1,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=4,
            mamba_expand=2,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
        QV,
    ),
    "Bamba": (
        "Bamba",
        dict(**GROUPED, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_expand=2),
        QV,
    ),
    "Zamba2": (
        "Zamba2",
        {
            "num_key_value_heads": 4,
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "num_mem_blocks": 1,
            "use_mamba_kernels": False,
        },
        QV,
    ),
    "FalconH1": ("FalconH1", dict(**GROUPED, mamba_n_heads=8, mamba_d_head=8, mamba_d_ssm=64, mamba_d_state=8), QV),
    "Mamba": ("Mamba", {"state_size": 4}, ["in_proj"]),
    "Mamba2": ("Mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1}, ["in_proj"]),
    "FalconMamba": ("FalconMamba", {"state_size": 4}, ["in_proj"]),
    "RecurrentGemma": (
        "RecurrentGemma",
        dict(**GROUPED, lru_width=32, attention_window_size=8, head_dim=8, block_types=["recurrent", "attention"]),
        QV,
    ),
    "Rwkv": ("Rwkv", {"attention_hidden_size": 32}, ["key"]),
    "Lfm2": ("Lfm2", dict(**GROUPED, layer_types=["conv", "full_attention"]), QV),
    "Dbrx": (
        "Dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 512,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1},
        },
        ["Wqkv"],
    ),
    "CodeGen": (
        "CodeGen",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 4, "n_ctx": 512},
        ["qkv_proj"],
    ),
    "XGLM": ("XGLM", {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}, QV),
    "BioGpt": ("BioGpt", {}, QV),
    "BitNet": ("BitNet", dict(**GROUPED), QV),
    "SeedOss": ("SeedOss", dict(**GROUPED), QV),
    "Dots1": (
        "Dots1",
        dict(
            **GROUPED,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            n_shared_experts=1,
        ),
        QV,
    ),
    "HunYuanDenseV1": ("HunYuanDenseV1", dict(**GROUPED, head_dim=8), QV),
    "Phimoe": ("Phimoe", dict(**GROUPED, num_local_experts=4, num_experts_per_tok=2), QV),
    "JetMoe": (
        "JetMoe",
        {"num_key_value_heads": 4, "kv_channels": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        ["kv_proj"],
    ),
    "Ministral": ("Ministral", dict(**GROUPED, head_dim=8, sliding_window=8), QV),
    "VaultGemma": ("VaultGemma", dict(**GROUPED, head_dim=8, sliding_window=8, query_pre_attn_scalar=8), QV),
    "DiffLlama": ("DiffLlama", dict(**GROUPED), QV),
    "Doge": ("Doge", dict(**GROUPED), QV),
}
PADDED = {
    "Qwen3Next", "Gemma2", "GPTNeo", "Bloom", "Falcon", "FalconAlibi", "Mpt", "StableLm", "GraniteMoeHybrid",
    "Nemotron", "GptOss", "Llama4Text", "MiniMax", "Jamba", "Bamba", "Zamba2", "FalconH1", "Mamba", "Mamba2",
    "FalconMamba", "RecurrentGemma", "Rwkv", "Lfm2", "XGLM", "BioGpt", "VaultGemma", "Doge",
}  # fmt: skip
SHARED_WEIGHTS = ["Zamba2"]
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory):
    """A tokenizer of words ``w0`` to ``w255``."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w1")
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), eos_token="w2", pad_token="w0", unk_token="w1"
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def base(request, tokenizer_files, tmp_path):
    """A folder with a base model of an architecture."""
    prefix, config, _ = ARCHITECTURES[request.param]
    config = getattr(hf, f"{prefix}Config")(**{**SIZES, **config})
    torch.manual_seed(7)
    model = hf.AutoModelForCausalLM.from_config(config)
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    shutil.copytree(tokenizer_files, folder, dirs_exist_ok=True)
    return folder


def draw_examples(draw):
    examples = []
    for length in (30, 7, 12):
        supervised = torch.rand(length, generator=draw) > 0.4
        supervised[0], supervised[-1] = False, True
        examples.append(Example(torch.randint(3, VOCABULARY, (length,), generator=draw), supervised))
    return examples


@torch.no_grad()
def loss_of(model, examples):
    """Plain transformers, one record at a time."""
    total = 0.0
    for example in examples:
        logits = model(input_ids=example.ids[None], use_cache=False).logits[0, :-1].float()
        marks = example.supervised[1:]
        total += float(torch.nn.functional.cross_entropy(logits[marks], example.ids[1:][marks], reduction="sum"))
    return total


def plain(folder, adapter=None):
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return (model if adapter is None else peft.PeftModel.from_pretrained(model, adapter)).eval()


def largest_difference(got, wanted):
    return max(abs(float(g) - w) / abs(w) for g, w in zip(got, wanted, strict=True))


@pytest.mark.parametrize(("base", "name"), [(name, name) for name in ARCHITECTURES], indirect=["base"])
def test_numbers_are_those_of_plain_transformers_and_peft(base, name, tmp_path):
    draw = torch.Generator().manual_seed(3)
    config = ModelConfig(name_or_path=str(base))
    model = create_lora_model(load_base_model(config, dtype=torch.float32)[0], 4, 8, 0.0, ARCHITECTURES[name][2])
    like = collect_lora_state(model)
    states = [{n: torch.randn(t.shape, generator=draw) * 0.2 for n, t in like.items()} for _ in range(2)]
    adapters = [export_lora_adapter(model, tmp_path / f"adapter{k}", state) for k, state in enumerate(states)]
    references = [plain(base, adapter) for adapter in adapters]
    records = draw_examples(draw)
    clients = [records[:2], records[2:]]
    wanted = [loss_of(reference, own) for reference, own in zip(references, clients, strict=True)]

    module = LoraClientModule(model).eval()
    module.choose_layout()
    cohort, row = LoraCohort(model), pack(clients)
    cohort.load(states, "cpu")
    with torch.no_grad(), cohort.attached():
        cohort.set_segments(row.client_tokens, lengths=row.lengths)
        together = largest_difference(module(row).loss, wanted)

    prompts = [record.ids for record in records[:2]]
    cohort.load(states[:1], "cpu")
    with cohort.attached():
        cohort.set_single_client()
        answers = generate(model, prompts, max_new_tokens=8, ends=[2])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = references[0].generate(
            input_ids=prompt[None], attention_mask=torch.ones_like(prompt[None]), max_new_tokens=8, do_sample=False,
            eos_token_id=2, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert answer.tolist() == [token for token in ids if token != 2]

    if name in SHARED_WEIGHTS:
        with pytest.raises(InputError, match="share a weight of the base model"):
            merge_adapter(config, adapters[0], tmp_path / "merged", dtype="fp32")
        apart = 0.0
    else:
        merged = merge_adapter(config, adapters[0], tmp_path / "merged", dtype="fp32").folder
        apart = largest_difference([loss_of(plain(merged), clients[0])], wanted[:1])
    print(f"\n| {name} | {module.layout} | {together:.0e} | {apart:.0e} |")
    assert max(together, apart) <= RELATIVE
    assert module.layout == ("padded" if name in PADDED else "packed")
