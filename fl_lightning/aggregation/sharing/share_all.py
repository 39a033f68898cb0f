"""``all``: both factors are trained, sent and averaged (FedIT: Zhang et al. 2023, arXiv 2305.05644).

The mean of the factors is not the mean of the products: ``mean(B) mean(A) ≠ mean(B A)``; the other policies that send
one factor alone do not have this error.
"""

from fl_lightning.aggregation.sharing.policy import SharePolicy, always

POLICY = SharePolicy(trainable_factor=always("all"), shared_factor=always("all"), private_factor="none")
