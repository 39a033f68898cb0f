"""Generating text: `generate` for one adapter; `decoding` with `adapter_bank` and `token_sampling` for many at once."""
