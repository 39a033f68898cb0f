"""A run as a whole: one folder ``version_N``, from a config to the files that a finished run leaves.

================== ====================================================================================
file               does
================== ====================================================================================
`build`            config → base model, data, callbacks, local clients
`fit`              trains into a new run folder, or continues one
`canaries`         records that an auditor has added
`excluded`         what the config leaves out of the data
`resume`           reads the newest checkpoint of a run and checks that it fits
`evaluate`         evaluates the adapters of a finished run again
`verify`           checks the chain of a run, its signature, and its files
`replay`           computes rounds of a finished run again and compares them with its ledger
`inclusion`        tells a client in which rounds its records are
`scoring`          evaluates any adapters on any data, with confidence intervals
`artifacts`        the contents of a run folder as dataclasses
`artifact_reader`  reads them; missing or broken files are noted
`audit_reader`     reads what an audit has found
`lenient`          parses values from files that may be broken
`listing`          the runs under a folder
`diagnosis`        compares a config with this machine
`forgetting`       takes clients, departments or records out of a finished run
`comparison`       several configs, each with several seeds
`audit`            bounds on ε from canaries, membership tests; `audit_table` prints them
`audited_adapters` the adapters that it attacks
`personalize`      which adapter each client takes, by its selection records
`newcomers`        the same for clients that were not in the run
`chains`           runs beside a run: of each client alone, and of all as one department
`choice_table`     prints what clients have chosen
`one_adapter`      one adapter out of a client's mixture
`level_adapters`   finds, trains and writes the adapters between which clients choose
================== ====================================================================================
"""
