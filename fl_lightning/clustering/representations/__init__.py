"""Representations: what departments (or clients) are compared by. Each function gives a `Dissimilarity`.

=================  =========  ==============================================  ======================  =============
name               needs      d_ij                                            source                  file
=================  =========  ==============================================  ======================  =============
raw                           ``‖A_i − A_j‖² / 2``                                                    factors.py
delta              reference  ``1 − cos(A_i − A₀, A_j − A₀)``                                         factors.py
subspace                      ``1 − ‖U_i U_jᵀ‖²_F / min(r_i, r_j)``, mean of  Hu et al. 2021, § 7.2   subspace.py
                              all layers
subspace_residual  reference  the same on the rows of ``A (I − P₀)``                                  subspace.py
product            B          ``1 − cos(B_i A_i, B_j A_j)``                                           product.py
cross_loss         losses     ``((L_ij − L_jj) + (L_ji − L_ii)) / 2``         Ghosh et al. 2020       cross_loss.py
=================  =========  ==============================================  ======================  =============

U_i has orthonormal rows that span those of A_i, P₀ projects on the rows of A₀, and L_ij is the loss of department i's
adapter on j's held-out records.
"""
