"""Generating text: `generate` for one adapter, `sample_answers` at random, and `decoding` for many adapters at once.

The last one uses `adapter_bank`, `adapter_mixture` and `token_sampling`.
"""
