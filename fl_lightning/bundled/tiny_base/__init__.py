"""A tiny Qwen2-architecture base model with its tokenizer, and the script that trained it."""
