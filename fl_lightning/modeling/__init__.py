"""The base model, its LoRA adapters, and forward passes shared by several clients.

==========================  ==============================================  ==================================
file                        does, or computes                               paper
==========================  ==============================================  ==================================
`base_model`                loads the frozen base model, also in 4 bits     Dettmers et al. 2023 (2305.14314)
`lora`                      ``h = W0 x + (lora_alpha / r) B A x``           Hu et al. 2021 (2106.09685)
`merging`                   ``W0 + (lora_alpha / r) B A`` as one model
`cohort`                    the adapters of K clients in one forward pass
`attention`                 attention over a packed row                     Dao 2023 (2307.08691)
`supervised_positions`      the last MLP on supervised positions only
`loss`                      ``− log softmax(logits)[target]``
`activation_checkpointing`  keeps layer inputs only, computes layers twice  Chen et al. 2016 (1604.06174)
`generation`                answers of many adapters in one batch           Yu et al. 2022 (Orca)
`target_modules`            which layers get an adapter
`adapter_config`            ``adapter_config.json``, read and written
`scaled_adapter`            an adapter of another rank, scale or layers
`input_energy`              what A alone tells about a record
`limits`                    positions and token ids that a base can take
`cohort_sites`              the layers in which a cohort works
`cohort_row`                where each client's tokens are in a row
`cohort_mixer`              ``p B_v A_v x + (1 − p) B_w A_w x``, p learned  Deng et al. 2020 (2003.13461)
`compute_dtype`             the dtype in which adapters compute
`stacked_factors`           one factor of all clients as a matrix
`low_rank_product`          ``B_g A_g x`` for several clients
`dropout`                   dropout from a counter                          Salmon et al. 2011 (Philox)
`row_layout`                packed, padded or single sequences
`packed_layout`             the sequences of a packed row
`head_loss`                 head and cross-entropy in chunks
==========================  ==============================================  ==================================

Numbers are arXiv ids.
"""
