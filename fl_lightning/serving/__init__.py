"""Serving a run: its adapters on one base model, behind OpenAI's chat API, on LitServe.

One process speaks HTTP (`spec`, behind `gate`), another computes (`worker`); what they say to each other is in
`messages`.
"""
