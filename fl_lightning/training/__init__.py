"""Local training of clients on this machine.

=====================  ===============================================================================
file                   does
=====================  ===============================================================================
`clients`              chooses between one process and several
`client_tasks`         which clients train in a round, and from which state
`client_sampling`      draws clients for a round
`round_schedule`       which clients a round takes in virtual time
`local_clients`        tasks in, updates out, in this process
`cohorts`              how many clients share a step
`row_budget`           tokens of a step, for the model and the device at hand
`cohort_fit`           the optimizer steps of a cohort
`row_evaluation`       loss and accuracy of adapters on records
`worker_processes`     cohorts over several processes
`data_parallel`        one cohort over several devices
`channel`              messages between these processes
`device`               device and precision
`memory`               memory in use, and its limit
`memory_estimate`      memory that a config needs
`step_rows`            what an optimizer step trains on, on the device
`step_graphs`          forward and backward pass of a row as a CUDA graph
`distillation`         a mixture of adapters into one
`own_adapters`         clients' own adapters beside the federation: Ditto, APFL, FedALT
=====================  ===============================================================================
"""
