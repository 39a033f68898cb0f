"""What went into a run, so that a third party can check it: a chain of rounds, signatures, salts, certificates.

================  ==========================================================================
file              does
================  ==========================================================================
digests           digests of JSON values, states, records and folders
chain             ``ledger.jsonl``: one line a round, each with the digest of the line before
chain_check       finds the first line that is not right
salts             the secret of a run, and commitments that show a client its own records only
inclusion        in which rounds a client's records are
signing           Ed25519 keys in the formats of OpenSSH and PEM
run_files         digests of a finished run's files
site_signatures   of sites under their updates, in a run between machines
certificate       says what a run no longer has, with the chains of both runs
================  ==========================================================================

The commands are `fl_lightning.commands.verify` and ``fit``; the line of a round is written by
`fl_lightning.callbacks.run_ledger`.
"""
