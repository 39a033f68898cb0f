"""The client's side of a run between machines.

=====================  =============================================================  ===========================
`run.py`               the command ``client``
`listener.py`          takes in requests while the site works
`site.py`              answers them: fit, evaluate, finish
`own_adapter.py`       the adapter that the site trains for itself beside the run
`store.py`             what the site keeps of the last rounds, on its disk
`update_signature.py`  signs what the site sends
`masking.py`           secure aggregation: the update stays, a masked one goes out    Bonawitz et al. 2017
`mask_record.py`       attempts and sums in which the site took part, on its disk
`roster.py`            the other sites' identities, from a file of the site's own
`lending.py`           its own adapter for others, if it lends it, and theirs for it
`levels.py`            what the site keeps of a run, for `personalize`
`personalize.py`       chooses between these adapters and its own
`local_dp.py`          clipping and noise at the site                                 Kasiviswanathan et al. 2011
=====================  =============================================================  ===========================
"""
