"""The state of a federation between rounds, what travels to and from clients, and both on disk.

| file | holds |
|---|---|
| `state` | `FederationState`: everything the next round depends on |
| `personal_mean` | the mean of what a department's clients keep for themselves |
| `round_report` | `RoundReport`: what happened in a round |
| `protocol` | `ClientTask`, `ClientUpdate`, `Metrics`, and the protocol of a `ClientTransport` |
| `checkpoint` | saving and loading a state |
| `checkpoint_schema` | the keys of a checkpoint's JSON |
| `history` | logged rows and callbacks' records, one line a round |
| `journal` | updates of the unfinished round |
| `fit_buffers` | who trains and whose updates wait in a department's buffer |
| `arrival_journal` | updates of sites that wait in a buffer |
| `update_archive` | updates of all rounds, by what they depend on |
| `fingerprint` | what must be equal when a run resumes |
| `virtual_time` | whose updates a round takes, and when, in virtual time |
| `client_profiles` | how fast the clients are |
| `retention` | which rounds are kept |
"""
