"""Linear algebra on LoRA factors and on clients' updates. Pure functions; no out × in matrix is ever formed.

=====================  ===============================================================================================
file                   holds
=====================  ===============================================================================================
`factors`              pairs (B, A) of a layer; products, inner products, norms and the SVD of B A from r × r Grams
`truncation`           the best rank-r factors of a sum of products (Eckart and Young 1936)
`adapter_algebra`      adapters of any rank: concatenate, add, resize, distance, SVD form
`own_mixture`          what weighs a client's own factors against the adapter beside it, in one state with them
`approximation_error`  relative error of an average of factors
`client_matrix`        updates as rows of a matrix, block by block; Gram matrix and distances
=====================  ===============================================================================================
"""
