"""What an attacker could learn from released adapters, measured: lower bounds beside the accountant's upper ones.

Pure functions; nothing here trains or reads a model.

==========================  =====================================================================  =====================
function                    does                                                                   file and paper
==========================  =====================================================================  =====================
`guess_coins`               guesses which canaries were in, from their scores                      `one_run`, 2305.08846
`epsilon_lower_bound`       the ε that so many right guesses disprove, from one run                `one_run`, 2305.08846
`provable_epsilon`          the largest such ε, if all guesses were right                          `one_run`, 2305.08846
`membership_test`           AUC, and true positives at few false ones, with intervals              `membership`
`audit_mechanism`           the same bound for clients, and an estimate, by canaries in directions  `canary_directions`,
                                                                                                   2302.03098
==========================  =====================================================================  =====================
"""
