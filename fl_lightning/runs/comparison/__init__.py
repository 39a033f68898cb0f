"""Compare configs: run each with the same seeds on the same records, and report differences with intervals.

============== =============================================================
file           does
============== =============================================================
`plan`         the configs, overrides and seeds, and the folder with them
`runner`       runs what is not finished, one run after another
`statistics`   results of a run; means, t-intervals and paired differences
`stopping`     a run at its best round by selection records
`virtual_time` how soon a run reaches a loss, in virtual hours
`report`       tables, JSON, CSV and the picture
============== =============================================================
"""
