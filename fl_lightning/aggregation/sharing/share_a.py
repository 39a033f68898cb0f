"""``a``: both are trained, A is sent, B stays with its client (FedSA-LoRA: Guo et al. 2024, arXiv 2410.01463).

A holds what clients have in common, B what is their own; half of the bytes for square layers, more on grouped queries.
"""

from fl_lightning.aggregation.sharing.policy import SharePolicy, always

POLICY = SharePolicy(trainable_factor=always("all"), shared_factor=always("a"), private_factor="b")
