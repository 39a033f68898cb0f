"""How good adapters are on held-out records.

==================== ============================================================ ===========================
file                 does                                                         source
==================== ============================================================ ===========================
`metrics`            loss, perplexity = exp(loss), token accuracy; their means
`panel`              the clients on whose records departments are evaluated
`departments`        departments' and groups' adapters, and a run's JSON files
`cross_loss`         every adapter on every department; a mean without one client
`scoring`            any adapters on any departments, record by record            ROUGE-L: Lin 2004
`bootstrap`          confidence intervals by resampling records                   Efron 1979
`samples`            generated answers of base and adapter, to read
`early_stopping`     the round with the lowest loss on selection records
`department_mixtures` weights of departments' mixed predictions, and their losses
`clustering_inputs`  what groups are clustered by, beyond their states
==================== ============================================================ ===========================
"""
