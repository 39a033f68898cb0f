"""Ways to combine the LoRA factors of a department's clients with the product ``ΔW = Σ w_c s_c B_c A_c`` in mind.

Here s_c is lora_alpha_c / r_c (lora_alpha_c / sqrt(r_c) for rsLoRA), and the weights w_c sum to one. All are pure
functions of states, sort clients, compute in fp64 and return fp32.

============  =================================================  ==================================  ===============
combiner      result                                             source                              file
============  =================================================  ==================================  ===============
``flora``     θ + momentum Σ w_c (θ_c − θ)                       Reddi et al. 2021, arXiv            `flora` at the
                                                                 2003.00295                          top level
``fedavg``    B̄ = Σ w_c B_c, Ā = Σ w_c A_c                       McMahan et al. 2017, arXiv          `fedavg`
                                                                 1602.05629
``stack``     [w_1 s_1 B_1, …], [A_1; …]: exact                  FLoRA, Wang et al. 2024, arXiv      `stacking`
                                                                 2409.05976
``residual``  B̄, Ā, and ΔW − s B̄ Ā: exact                        FedEx-LoRA, Singhal et al. 2024,    `residual`
                                                                 arXiv 2410.09432
``svd``       best rank-r_c approximation of ΔW for each client  FlexLoRA, Bai et al. 2024, arXiv    `truncation` in
                                                                 2402.11505                          ``linalg``
============  =================================================  ==================================  ===============

``flora`` and ``fedavg`` average factors; they also work on A alone. The mean of the factors is not the mean of the
products: it misses the covariance of B and A over clients, which grows as clients diverge
(`fl_lightning.linalg.approximation_error`).

``stack`` takes clients of any ranks; the result has the sum of their ranks, and grows every round. ``residual`` needs
one rank for all clients; the residual beside the factors grows every round. Every client has to receive these products.

``svd`` takes clients of any ranks and reports the truncation error. B and A come back in another basis than they were
sent, so A cannot be compared with A₀, nor with itself a round before, and running averages of factors make no sense.

`department_product` keeps the products of a run in these three ways, and `client_start` gives the factors from which
clients start.
"""
