"""What a site signs, and what it does not."""

import pytest
import torch

from fl_lightning.federation.protocol import ClientUpdate
from fl_lightning.network.site.update_signature import UpdateSigner
from fl_lightning.provenance.signing import is_signed
from fl_lightning.provenance.site_signatures import signed_statement, update_commitment

pytest.importorskip("cryptography", reason="cryptography is not installed; the sign extra has it")

SHARED = {"q.lora_A.weight": torch.ones(2, 3)}
UPDATE = ClientUpdate("hr/a", 4, SHARED, 3, 30, [1.0, 1 / 3])
LEDGER = {"run": "5e" * 16, "salt": "ab" * 32}


def test_the_signature_is_of_run_round_site_and_update_and_the_same_each_time(tmp_path):
    signer = UpdateSigner(tmp_path, "hr/a")
    signed = signer.sign(UPDATE, SHARED, LEDGER)
    commitment = update_commitment(LEDGER["salt"], SHARED, 3, 30, [1.0, 1 / 3])
    statement = signed_statement(LEDGER["run"], 4, "hr/a", commitment)
    assert is_signed(signer.public_key, signed.signature, statement)
    assert UpdateSigner(tmp_path, "hr/a").sign(UPDATE, SHARED, LEDGER) == signed  # after a restart, too
    assert UpdateSigner(tmp_path / "another", "hr/a").public_key != signer.public_key


def test_without_a_ledger_nothing_is_signed(tmp_path):
    assert UpdateSigner(tmp_path, "hr/a").sign(UPDATE, SHARED, None) is UPDATE


@pytest.mark.parametrize(
    "ledger", [7, {}, {"run": "5e" * 16}, {**LEDGER, "run": "x" * 32}, {**LEDGER, "salt": None}, {**LEDGER, "run": 5}]
)
def test_what_is_no_ledger_is_refused(tmp_path, ledger):
    with pytest.raises(ValueError, match="ledger: expected run and salt"):
        UpdateSigner(tmp_path, "hr/a").sign(UPDATE, SHARED, ledger)
