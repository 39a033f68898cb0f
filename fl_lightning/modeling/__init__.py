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
==========================  ==============================================  ==================================

Numbers are arXiv ids.
"""
