"""Architectures of transformers that `AutoModelForCausalLM` loads, with tiny random weights."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

VOCABULARY = 256
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 512, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
QV = ["q_proj", "v_proj"]
GROUPED = {"num_key_value_heads": 2}
HEADS_OF_8 = {**GROUPED, "head_dim": 8}
WINDOW = {"sliding_window": 8}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SMALL_EXPERTS = {**EXPERTS, "moe_intermediate_size": 16}
ROUTED_EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip
MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
DELTA = {
    "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
GEMMA_TEXT = {**SIZES, **HEADS_OF_8, **WINDOW, "query_pre_attn_scalar": 8}
GEMMA_IMAGES = {"mm_tokens_per_image": 4, "image_token_index": 250, "boi_token_index": 251, "eoi_token_index": 252}
CHUNKS = {
    **HEADS_OF_8, "num_local_experts": 2, "num_experts_per_tok": 1, "attention_chunk_size": 8,
    "intermediate_size_mlp": 32,
}  # fmt: skip

# {name: (prefix of the classes, config, target modules)}
# fmt: off
ARCHITECTURES = {
    "Afmoe": ("Afmoe", {**HEADS_OF_8, **SMALL_EXPERTS, **WINDOW, "num_dense_layers": 1}, QV),
    "Apertus": ("Apertus", GROUPED, QV),
    "Arcee": ("Arcee", GROUPED, QV),
    "Bamba": ("Bamba", {**GROUPED, **MAMBA_HEADS, "attn_layer_indices": [1], "mamba_expand": 2}, QV),
    "BioGpt": ("BioGpt", {}, QV),
    "BitNet": ("BitNet", GROUPED, QV),
    "Bloom": ("Bloom", {"n_layer": 2, "n_head": 4}, ["query_key_value"]),
    "CodeGen": ("CodeGen", {**GPT, "rotary_dim": 4, "n_ctx": 512}, ["qkv_proj"]),
    "Cohere": ("Cohere", {**GROUPED, "logit_scale": 0.1}, QV),
    "Cohere2": ("Cohere2", {**GROUPED, **WINDOW}, QV),
    "CTRL": ("CTRL", {**GPT, "dff": 48}, ["Wq"]),
    "Dbrx": ("Dbrx", {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1},
    }, ["Wqkv"]),
    "DeepseekV2": ("DeepseekV2", {**LATENT, **ROUTED_EXPERTS}, ["q_b_proj", "kv_b_proj"]),
    "DeepseekV3": ("DeepseekV3", {**LATENT, **ROUTED_EXPERTS}, ["q_b_proj", "kv_b_proj"]),
    "DiffLlama": ("DiffLlama", GROUPED, QV),
    "Doge": ("Doge", GROUPED, QV),
    "Dots1": ("Dots1", {**GROUPED, **ROUTED_EXPERTS, "n_shared_experts": 1}, QV),
    "Ernie4_5": ("Ernie4_5", HEADS_OF_8, QV),
    "Ernie4_5_Moe": ("Ernie4_5_Moe", {
        **GROUPED, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1,
        "moe_num_shared_experts": 1,
    }, QV),
    "Exaone4": ("Exaone4", {**HEADS_OF_8, **WINDOW}, QV),
    "Falcon": ("Falcon", {"alibi": False}, ["query_key_value"]),
    "Falcon with ALiBi": ("Falcon", {"alibi": True}, ["query_key_value"]),
    "FalconH1": ("FalconH1", {**GROUPED, **MAMBA_HEADS, "mamba_d_ssm": 64}, QV),
    "FalconMamba": ("FalconMamba", {"state_size": 4}, ["in_proj"]),
    "FlexOlmo": ("FlexOlmo", {**GROUPED, **EXPERTS}, QV),
    "Gemma": ("Gemma", HEADS_OF_8, QV),
    "Gemma 2 (soft caps)": ("Gemma2", {**HEADS_OF_8, **WINDOW, "query_pre_attn_scalar": 8}, QV),
    "Gemma 3 (text)": ("Gemma3Text", {**HEADS_OF_8, **WINDOW, "query_pre_attn_scalar": 8}, QV),
    "Gemma 3 (vision tower)": ("Gemma3", {"text_config": GEMMA_TEXT, "vision_config": VISION, **GEMMA_IMAGES}, QV),
    "Gemma 3n (text)": ("Gemma3nText", {
        **HEADS_OF_8, **WINDOW, "vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
        "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
    }, QV),
    "Gemma 4 (text)": ("Gemma4Text", {
        **HEADS_OF_8, **WINDOW, "global_head_dim": 8, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 256,
    }, QV),
    "Glm": ("Glm", HEADS_OF_8, QV),
    "Glm4": ("Glm4", HEADS_OF_8, QV),
    "Glm4Moe": ("Glm4Moe", {**HEADS_OF_8, **ROUTED_EXPERTS}, QV),
    "GPT2": ("GPT2", GPT, ["c_attn"]),
    "GPTBigCode": ("GPTBigCode", GPT, ["c_attn"]),
    "GPTJ": ("GPTJ", {**GPT, "rotary_dim": 4}, QV),
    "GPTNeo (local attention)": ("GPTNeo", {
        "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8,
    }, QV),
    "GPTNeoX": ("GPTNeoX", {}, ["query_key_value"]),
    "gpt-oss (sinks)": ("GptOss", {**HEADS_OF_8, **LOCAL_EXPERTS, **WINDOW}, QV),
    "Granite (multipliers)": ("Granite", {
        **GROUPED, "logits_scaling": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0,
    }, QV),
    "GraniteMoe": ("GraniteMoe", {**GROUPED, **LOCAL_EXPERTS}, QV),
    "GraniteMoeHybrid": ("GraniteMoeHybrid", {
        **GROUPED, **LOCAL_EXPERTS, **MAMBA_HEADS, "shared_intermediate_size": 16, "mamba_expand": 2,
        "layer_types": ["mamba", "attention"],
    }, QV),
    "Helium": ("Helium", HEADS_OF_8, QV),
    "HunYuanDenseV1": ("HunYuanDenseV1", HEADS_OF_8, QV),
    "Jamba": ("Jamba", {
        **GROUPED, "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_expand": 2, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    }, QV),
    "JetMoe": ("JetMoe", {
        "num_key_value_heads": 4, "kv_channels": 8, "num_local_experts": 2, "num_experts_per_tok": 1,
    }, ["kv_proj"]),
    "Lfm2 (convolutions)": ("Lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}, QV),
    "Llama": ("Llama", GROUPED, ["all-linear"]),
    "Llama 4 (chunks, vision tower)": ("Llama4", {
        "text_config": {**SIZES, **CHUNKS},
        "vision_config": {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    }, QV),
    "Llama 4 (text)": ("Llama4Text", CHUNKS, QV),
    "LongcatFlash": ("LongcatFlash", {
        **LATENT, "num_layers": 1, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "n_routed_experts": 4,
        "moe_topk": 2, "zero_expert_num": 2, "head_dim": 4,
    }, ["q_b_proj"]),
    "Mamba": ("Mamba", {"state_size": 4}, ["in_proj"]),
    "Mamba2": ("Mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1}, ["in_proj"]),
    "MiniMax (linear attention)": ("MiniMax", {
        **HEADS_OF_8, "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 8,
    }, QV),
    "Ministral": ("Ministral", {**HEADS_OF_8, **WINDOW}, QV),
    "Mistral": ("Mistral", {**GROUPED, **WINDOW}, QV),
    "Mixtral": ("Mixtral", {**GROUPED, **LOCAL_EXPERTS}, QV),
    "Mpt (ALiBi)": ("Mpt", {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512, "expansion_ratio": 2,
    }, ["Wqkv"]),
    "Nemotron": ("Nemotron", GROUPED, QV),
    "NemotronH": ("NemotronH", {
        **HEADS_OF_8, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8,
        "ssm_state_size": 8, "n_groups": 1,
    }, QV),
    "Olmo": ("Olmo", GROUPED, QV),
    "Olmo2": ("Olmo2", GROUPED, QV),
    "Olmo3": ("Olmo3", {**GROUPED, **WINDOW}, QV),
    "Olmoe": ("Olmoe", {**GROUPED, **EXPERTS}, QV),
    "OPT": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}, QV),
    "Persimmon": ("Persimmon", {}, ["query_key_value"]),
    "Phi": ("Phi", GROUPED, QV),
    "Phi3": ("Phi3", {**GROUPED, **WINDOW}, ["qkv_proj"]),
    "Phimoe": ("Phimoe", {**GROUPED, **LOCAL_EXPERTS}, QV),
    "Qwen2": ("Qwen2", GROUPED, [r".*\.(q|v|down)_proj"]),
    "Qwen2Moe": ("Qwen2Moe", {**GROUPED, **SMALL_EXPERTS, "shared_expert_intermediate_size": 16}, ["all-linear"]),
    "Qwen3": ("Qwen3", HEADS_OF_8, QV),
    "Qwen3Moe": ("Qwen3Moe", {**HEADS_OF_8, **SMALL_EXPERTS}, QV),
    "Qwen3Next": ("Qwen3Next", {**HEADS_OF_8, **SMALL_EXPERTS, **DELTA, "shared_expert_intermediate_size": 16}, QV),
    "Qwen3.5 (text)": ("Qwen3_5Text", {**HEADS_OF_8, **DELTA}, QV),
    "RecurrentGemma": ("RecurrentGemma", {
        **HEADS_OF_8, "lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"],
    }, QV),
    "Rwkv": ("Rwkv", {"attention_hidden_size": 32}, ["key"]),
    "SeedOss": ("SeedOss", GROUPED, QV),
    "SmolLM3": ("SmolLM3", GROUPED, QV),
    "StableLm": ("StableLm", GROUPED, QV),
    "Starcoder2": ("Starcoder2", {**GROUPED, **WINDOW}, QV),
    "VaultGemma": ("VaultGemma", {**HEADS_OF_8, **WINDOW, "query_pre_attn_scalar": 8}, QV),
    "XGLM": ("XGLM", {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}, QV),
    "Zamba2 (shared layers)": ("Zamba2", {
        "num_key_value_heads": 4, "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8, "num_mem_blocks": 1, "use_mamba_kernels": False,
    }, QV),
}
# fmt: on


def random_model(name: str) -> hf.PreTrainedModel:
    """A model of an architecture; skips the test if the installed transformers does not have it."""
    prefix, config, _ = ARCHITECTURES[name]
    if not hasattr(hf, f"{prefix}Config"):
        pytest.skip(f"transformers {hf.__version__} has no {prefix}")
    sizes = {} if "text_config" in config else SIZES
    torch.manual_seed(7)
    return hf.AutoModelForCausalLM.from_config(getattr(hf, f"{prefix}Config")(**{**sizes, **config}))
