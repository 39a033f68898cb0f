"""Clients' own adapters beside the federation: never averaged, each goes on from itself.

==============  ===================================================================  ==================================
``personal``    the own adapter v of a client, with the department's adapter w       source
==============  ===================================================================  ==================================
`own: during`   is trained alone
`ditto_lambda`  is trained under ``λ / 2 · ‖v − w‖²``, with w of the round's start     Ditto, Li et al. 2021, arXiv
                                                                                     2012.04221
`apfl_alpha`    is trained inside ``α B_v A_v + (1 − α) B_w A_w``, with w of the       APFL, Deng et al. 2020, arXiv
                round's start, and used in the same mixture                          2003.13461
==============  ===================================================================  ==================================

Ditto and APFL step v and w in turns, and so does a round here: w is frozen while the own adapters train, and both start
the next round from what they became. APFL mixes whole models; here what is mixed are the products, which is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fl_lightning.config import PersonalConfig
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.federation.state import FederationState
from fl_lightning.linalg.adapter_algebra import concatenate_adapters
from fl_lightning.state import LoraState


def own_tasks(config: PersonalConfig, state: FederationState, tasks: Sequence[ClientTask]) -> list[ClientTask]:
    """The fits of the sampled clients' own adapters; the first one of a client starts from the common start.

    They have the seeds of the clients' other fits. So without Ditto and APFL an own adapter is the one that
    ``share: none`` would train.

    Args:
        config: the ``personal`` block.
        state: of the federation before the round.
        tasks: of the round.

    Returns:
        One task for each of `tasks`; none unless ``own: during``.
    """
    if config.own != "during":
        return []
    frozen: dict[str, LoraState] = {}
    if config.apfl_alpha < 1:
        names = {task.department for task in tasks}
        frozen = {name: concatenate_adapters([state.adapter(name)], [1 - config.apfl_alpha]) for name in names}
    return [
        replace(
            task,
            start=state.own_adapters.get(task.client_id, state.initial),
            trainable_factor="all",
            relative_scaling=task.relative_scaling * config.apfl_alpha,
            frozen_product=frozen.get(task.department, {}),
            is_own=True,
            anchor=state.departments[task.department] if config.ditto_lambda else {},
            anchor_strength=config.ditto_lambda,
        )
        for task in tasks
    ]


def own_adapter(config: PersonalConfig, state: FederationState, client_id: str) -> LoraState:
    """What a client uses as its own after the run: its own adapter, under APFL mixed with its department's.

    A client that never took part has the common start, which changes nothing.
    """
    own = state.final_own_adapter(client_id)
    if config.apfl_alpha == 1:
        return own
    alpha, department = config.apfl_alpha, client_id.split("/", 1)[0]
    return concatenate_adapters([own, state.adapter(department)], [alpha, 1 - alpha])
