"""Taking clients, departments or records out of a finished run.

=========  ==========================================================================
file       does
=========  ==========================================================================
`request`  what is to be taken out, looked up in the data of the run
`plan`     from which round the run is computed again, and what that costs
`start`    fills the new run's folder up to that round
`traces`   what the run before leaves, and its deletion
`forget`   the whole: the new run, its certificate, the mark on the run before
=========  ==========================================================================
"""
