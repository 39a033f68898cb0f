"""The base model, its tokenizer and its LoRA adapters."""
