"""``b``: both are trained, B is sent, A stays with its client (Fed-ALoRA: Ban and Ji 2025, arXiv 2509.25414).

The counterpart of ``a``: B starts at zero for everybody and is what clients come to agree on.
"""

from fl_lightning.aggregation.sharing.policy import SharePolicy, always

POLICY = SharePolicy(trainable_factor=always("all"), shared_factor=always("b"), private_factor="a")
