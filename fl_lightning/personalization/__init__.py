"""Which level each client takes: its own adapter, its department's, its cluster's, that of all, or the base alone.

==========  =====================================================================================  ===================
what        formula                                                                                file
==========  =====================================================================================  ===================
mixture     ``p(token) = Σ_m π_m p_m(token)``, π by EM on a client's selection records             `mixture`
level       the m with the lowest loss on these records and the department's                       `choice`
parameters  ``ΔW = Σ_m π_m B_m A_m``: one adapter with the weights of the mixture                  `choice`
levels      means of the products of a cluster's departments, and of all departments               `shared_levels`
mates       own adapters that other clients lend, each one m                                       `mates`
==========  =====================================================================================  ===================

Sources: mixtures of federated models, Marfoq et al. 2021 (FedEM), arXiv 2108.10252; interpolation of own and shared
model, Mansour et al. 2020 (MAPPER), arXiv 2002.10619.
"""
