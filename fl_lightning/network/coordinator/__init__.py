"""The server's side of a run between machines.

======================  ==========================================================================
`run.py`                the command ``server``
`join.py`               waits for the sites at the start
`remote_clients.py`     tasks to sites and updates back, with a deadline and a quorum
`buffered_clients.py`   the same where sites train while departments step
`secure_clients.py`     the same with secure aggregation: sums instead of updates
`masked_round.py`       what a department's sites are asked for a sum, and what they answer
`site_rounds.py`        asks sites as they get ready, and steps departments when buffers are full
`site_evaluation.py`    one evaluation by the sites
`lending.py`            own adapters that sites lend to each other at the end
`signatures.py`         the sites' signatures of their updates
`requests.py`           pairs replies with requests, and counts bytes
`transport.py`          numbered messages to the owner of a key
======================  ==========================================================================
"""
