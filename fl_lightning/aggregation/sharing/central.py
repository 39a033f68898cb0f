"""``central``: all records in one place, trained on as by one client; no federation, and what every one is measured by.

Every department has the same adapter then. What it gains over a federation is the price of keeping records apart.
"""

from fl_lightning.aggregation.sharing.policy import SharePolicy, always

POLICY = SharePolicy(
    trainable_factor=always("all"), shared_factor=always("all"), private_factor="none", is_central=True
)
