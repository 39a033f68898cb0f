"""From the updates of a department's clients to its next state.

=====================  ===============================================================================================
file                   does
=====================  ===============================================================================================
`updates`              checks a round's updates and stores them by department
`staleness`            late updates as changes of the newest state
`weighting`            weights: examples, tokens, uniform, loss improvement, contribution
`sharing`              share policies: which factor is trained, shared, private
`robust`               robust means: norm clipping, outlier filter, Krum, medians, trimmed mean
`products`             combiners that keep the product B A: stacking, residual, SVD; where clients start
`server_optimizers`    the step: SGD, FedAvgM, FedAdam, FedYogi, FedAdagrad; schedules of its size
`department`           all of these together; the default is `fl_lightning.flora.flora_weighted_aggregate`
`private`              the same under differential privacy
`secure`               the same from a masked sum
`round_step`           the step of all departments in a round
`quorum`               which departments have enough valid updates
`diagnostics`          how a department's step went
=====================  ===============================================================================================

The names of methods are written once, in `fl_lightning.config.federation`; `registry` finds their functions.
"""
