"""``none``: nothing is sent, every client trains on alone: the baseline that federation has to beat.

A department's exported adapter is the weighted mean of its clients' own, from which nobody starts but new clients.
"""

from fl_lightning.aggregation.sharing.policy import SharePolicy, always

POLICY = SharePolicy(trainable_factor=always("all"), shared_factor=always("none"), private_factor="all")
