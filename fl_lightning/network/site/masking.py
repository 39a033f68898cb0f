"""A site's side of secure aggregation: its update stays here, and only a masked one goes out.

The site takes the terms of a round from its own config and model, the identities of the others from its own roster,
and the number of the attempt and of the sites that are asked from the server. What it refuses it says and logs; it then
takes no further part in the round.

With ``federation.guard.name: dp`` the site clips, and adds its share of the noise, by the numbers of its own config.
Its noise comes from the operating system, anew in each attempt at a round: were it the same for another sum, the
difference of both would have less. So each attempt costs as much as a round, and counts in the site's account
(``masked_releases.json``) before a masked update leaves it, whether the sum is ever read or not. A site whose update
cannot be used takes part with its noise alone, since who takes part is public.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from fl_lightning.aggregation.secure import changes_of, problem_with_input, round_terms, weight_of
from fl_lightning.aggregation.updates import problem_with_update, unchanged
from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.config import RunConfig
from fl_lightning.federation.protocol import ClientTask, ClientUpdate
from fl_lightning.network.masked_messages import (
    MASKED,
    MAX_ATTEMPT,
    STEPS,
    bytes_from_json,
    count_from_json,
    group_name,
    keys_from_json,
    keys_to_json,
    names_from_json,
    request_from_json,
    shares_to_json,
    unmask_to_json,
)
from fl_lightning.network.site.local_dp import LocalLedger
from fl_lightning.network.site.mask_record import MaskRecord
from fl_lightning.network.site.roster import read_roster
from fl_lightning.privacy import epsilon_of_shares
from fl_lightning.privacy.secure_aggregation.client import SecureClient
from fl_lightning.privacy.secure_aggregation.participant import Participant
from fl_lightning.privacy.secure_aggregation.terms import MAX_CLIENTS, SecureAggregationError
from fl_lightning.state import LoraState, norm

log = logging.getLogger(__name__)
RELEASES = "masked_releases.json"
"""A site's account of the sums that it may be in, with noise in shares."""
Answer: TypeAlias = tuple[dict[str, Any], list[LoraState]]
"""JSON values and tensors."""


class SiteMasking:
    """Secure aggregation at one site.

    Args:
        config: of the site.
        client_id: of the site.
        key: its private Ed25519 key, which is its identity.
        folder: of the site, for its account of all runs.

    Raises:
        InputError: if the roster cannot be used.
    """

    def __init__(self, config: RunConfig, client_id: str, key: Any, folder: Path) -> None:
        self._folder = folder
        self._config, self._client_id = config.federation, client_id
        self._identity, self._roster = key.private_bytes_raw(), read_roster(config, client_id, key)
        self._round: _Round | None = None

    def advertised(self, header: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer to a fit that this site has answered before, if its answer was lost; None to train.

        Raises:
            ValueError: if the request is none of secure aggregation.
        """
        key = _key_of(header)
        if self._round is not None and self._round.key == key and self._round.step == "share":
            return self._round.answer
        self._round = None
        return None

    def begin(
        self, header: Mapping[str, Any], folder: Path, update: ClientUpdate, task: ClientTask, initial: LoraState
    ) -> dict[str, Any]:
        """Keep an update, and give out the keys of the round.

        Args:
            header: of the request.
            folder: of the site and the run.
            update: its state has only what is shared.
            task: that it answers; its start has at least what is shared.
            initial: the adapter from which everybody starts.

        Raises:
            SecureAggregationError: if the site takes no part.
        """
        run, round_num, attempt, invited = key = _key_of(header)
        if (task.round_num, task.started_round) != (round_num, None):
            raise SecureAggregationError(
                f"{self._client_id} refuses: expected a task of round {round_num}, got one of another: the same update "
                "in two sums would show their difference"
            )
        start = {name: task.start[name] for name in update.state}
        stats = ClientStats(update.num_examples, update.num_tokens)
        problem = problem_with_update(update, ClientTask(**{**vars(task), "start": start}), self._limit(initial))
        if problem := problem or problem_with_input(self._config, update.state, start, stats):
            if not self._config.noise_in_shares:
                log.warning("round %d: this site takes no part: %s", round_num, problem)
                raise SecureAggregationError("the update does not fit; the site's log says why")
            log.warning("round %d: this site takes part with its noise alone: %s", round_num, problem)
            update, stats = unchanged(update, start), ClientStats(1, 0)
        record = MaskRecord(folder)
        department = self._client_id.split("/", 1)[0]
        group = group_name(department, round_num)
        terms = round_terms(self._config, start, run=run, department=group, round_num=attempt, invited=invited)
        masking = self._config.masking
        last = {(run, group): record.last_attempt(round_num)}
        member = Participant(
            self._client_id, self._identity, self._roster, masking.min_clients, masking.threshold, last
        )
        client = SecureClient(member, terms)
        record.join(round_num, attempt)  # before keys go out
        answer = {"keys": keys_to_json(client.advertise())}
        values, weight = changes_of(update.state, start), weight_of(self._config, stats)
        self._round = _Round(key, client, record, values, weight, answer, partial(self._count_release, key))
        return answer

    def answer(self, header: Mapping[str, Any]) -> Answer:
        """The answer to a step after the fit.

        A request that comes twice gets the same answer twice, since answers may be lost.

        Raises:
            SecureAggregationError: if the site does not answer, and takes no further part in the round.
            ValueError: if the request is none of secure aggregation.
        """
        if self._round is None or self._round.key != _key_of(header):
            raise SecureAggregationError(
                f"{self._client_id} takes no part in this attempt of the round: it was started again since, or has "
                "not trained for it"
            )
        return self._round.take(header["do"], header["masked"])

    def _count_release(self, key: tuple[str, int, int, int]) -> None:
        """Note the cost of a masked update, on the disk when this returns."""
        if not self._config.noise_in_shares:
            return
        privacy, (run, round_num, attempt, _) = self._config.privacy, key
        ledger = LocalLedger(self._folder / RELEASES, epsilon_of_shares)
        ledger.record(f"{run}/{round_num}/{attempt}", privacy.noise_multiplier)
        log.info("round %d: ε %.3g at δ %g so far", round_num, ledger.epsilon(privacy.delta), privacy.delta)

    def _limit(self, initial: Mapping[str, torch.Tensor]) -> float:
        return self._config.max_update_norm * norm(initial)


class _Round:
    """One attempt of a round.

    Args:
        key: run, round, attempt and number of sites that are asked.
        client: the site's side of the protocol.
        record: what is on its disk.
        values: the update, as one vector.
        weight: of the update.
        answer: to the fit.
        on_release: called before a masked update leaves the site.
    """

    def __init__(
        self,
        key: tuple[str, int, int, int],
        client: SecureClient,
        record: MaskRecord,
        values: Any,
        weight: int,
        answer: dict[str, Any],
        on_release: Callable[[], None],
    ) -> None:
        self._on_release = on_release
        self.key, self.answer, self.step = key, answer, "share"
        self._client, self._record, self._values, self._weight = client, record, values, weight
        self._answered: tuple[str, str, Answer] | None = None
        """The last step, the digest of its request, the answer."""

    def take(self, step: str, content: Any) -> Answer:
        """The answer to a step; each is taken once and in order, and after a refusal none."""
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        if self._answered is not None and self._answered[:2] == (step, digest):
            return self._answered[2]
        if step != self.step:
            reason = f"expected the step {self.step} of this round, got {step}"
            self.step = "refused"
            raise SecureAggregationError(f"{self._client.client_id} refuses: {reason}")
        self.step = "refused"  # unless it goes well
        take = {"share": self._share, "mask": self._mask, "sign": self._sign, "unmask": self._unmask}[step]
        answer = take(content)
        self._answered = step, digest, answer
        self.step = (*STEPS, "end")[STEPS.index(step) + 1]
        return answer

    def _share(self, content: Any) -> Answer:
        if not isinstance(content, Mapping):
            raise ValueError(f"expected the keys of clients, got {str(content)[:80]}")
        keys = {str(name): keys_from_json(value) for name, value in content.items()}
        return shares_to_json(self._client.share_keys(keys)), []

    def _mask(self, content: Any) -> Answer:
        masked = self._client.masked_input(bytes_from_json(content), self._values, self._weight)
        self._values = None
        self._on_release()
        log.info("round %d: the masked update goes out", self.key[1])
        return {}, [{MASKED: torch.from_numpy(masked.view(np.int32))}]

    def _sign(self, content: Any) -> Answer:
        survivors = names_from_json(content)
        signature = self._client.sign_survivors(survivors)
        self._record.sign(self.key[1], survivors)  # before the signature goes out
        return {"signature": signature.hex()}, []

    def _unmask(self, content: Any) -> Answer:
        request = request_from_json(content)
        answer = unmask_to_json(self._client.unmask(request))
        log.info("round %d: this site's update is in a sum of %d sites", self.key[1], len(request.survivors))
        return answer, []


def _key_of(header: Mapping[str, Any]) -> tuple[str, int, int, int]:
    """(run, round, attempt, sites that are asked) of a request."""
    values, request_id = header.get("secure"), header["request_id"]
    if not isinstance(values, Mapping):
        raise ValueError("federation.secure_aggregation: expected a request with an attempt, got one without")
    round_num = count_from_json(request_id["round"], "round", MAX_ATTEMPT)
    attempt, invited = (count_from_json(values.get(name), name) for name in ("attempt", "invited"))
    return str(request_id["run"]), round_num, attempt, min(invited, MAX_CLIENTS + 1)
