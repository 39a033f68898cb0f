"""Generating text: `generate` for one adapter; `decoding` with `adapter_bank`, `adapter_mixture`, `token_sampling`."""
