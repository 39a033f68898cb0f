"""The server's side of a run between machines.

====================  ==========================================================================
`run.py`              the command ``server``
`join.py`             waits for the sites at the start
`remote_clients.py`   tasks to sites and updates back, with a deadline and a quorum
`lending.py`          own adapters that sites lend to each other at the end
`signatures.py`       the sites' signatures of their updates
`requests.py`         pairs replies with requests, and counts bytes
`transport.py`        numbered messages to the owner of a key
====================  ==========================================================================
"""
