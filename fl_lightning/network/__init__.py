"""Runs between machines: a coordinator, sites that keep their records, and Flower to carry the messages.

=========================  =============================================================================
`coordinator/`             the server's side: waits for the sites, sends requests, checks replies
`site/`                    the client's side: trains on records that never leave the machine
`flower/`                  Flower's processes on both sides, and the apps that they run
`compatibility.py`         what the configs of server and sites must have in common
`masked_compatibility.py`  what secure aggregation rules out between machines
`validation.py`            how large a reply may be, what it must repeat, and what it must hold
`masked_messages.py`       messages of secure aggregation as JSON
`compression.py`           updates in 16 or 8 bits (Seide et al. 2014; Karimireddy et al. 2019)
`frames.py`                a JSON header and bytes, between processes of one machine
`tls.py`                   certificate authority, the server's certificate, the sites' keys
=========================  =============================================================================
"""
