"""``freeze_a``: A stays as it was drawn, B is trained and sent (FFA-LoRA: Sun et al. 2024, arXiv 2403.12313).

With one A for everybody the mean of the B is the mean of the products, exactly, and noise for privacy is added to one
factor only.
"""

from fl_lightning.aggregation.sharing.policy import SharePolicy, always

POLICY = SharePolicy(trainable_factor=always("b"), shared_factor=always("b"), private_factor="none")
